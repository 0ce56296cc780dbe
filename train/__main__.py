"""`repvit-sam train`: distillation of a segmenter, and its input."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from repvit_sam_jax.cli import place
from repvit_sam_jax.config import Dtype
from repvit_sam_jax.terminal import counted, run_commands

app = tyro.extras.SubcommandApp()
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Recipe = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]


@app.command(name="scenes")
def scenes(
    out: Out,
    *,
    count: int = 1000,
    seed: int = 0,
    size: int = 512,
    view: Literal["usual", "close_up", "far", "outdoors", "strips"] = "usual",
    workers: int = 1,
) -> None:
    """Write synthetic scenes with exact masks, as tar shards in SA-1B's layout; an interrupted run goes on.

    Args:
      out: A new folder, or that of an earlier run with the same settings.
      count: Scenes, 1000 a shard.
      seed: Which series.
      size: Longer side in pixels; the shorter one varies.
      view: `close_up` has few and large things, `far` more and smaller ones, `outdoors` surfaces like rock,
        leaves, fur and water; `strips` is the same with layers of ground and long things.
      workers: Processes that draw.
    """
    from repvit_sam_jax.data.shards import write_shards

    shards = write_shards(out, count, seed=seed, size=size, view=view, workers=workers)
    print(f"{out}: {counted(count, 'scene')} in {counted(len(shards), 'shard')}")


@app.command(name="pseudo-label")
def pseudo_label(
    out: Out,
    *,
    data: tuple[str, ...],
    teacher: str = "demo",
    count: int = 1000,
    seed: int = 0,
    image_size: int = 512,
    whole: bool = False,
) -> None:
    """Write windows of photos, with the masks that a segmenter finds there, as tar shards in SA-1B's layout.

    They are for self-training: a mask is the mean of two answers, to a part of a window and to its mirror image. An
    interrupted run goes on.

    Args:
      out: A new folder, or that of an earlier run with the same settings.
      data: Photos, as for `distill`; their masks are not read.
      teacher: A .safetensors file, or `demo`.
      count: Windows, 1000 a shard.
      seed: Which series.
      image_size: The teacher's side S, and the longer side of a window, in pixels.
      whole: Look at windows as a whole, for masks of all sizes, and not at magnified parts of them.
    """
    from repvit_sam_jax.data import open_source

    from .pseudo_labels import write_pseudo_labels
    from .teacher import load_teacher

    chosen = load_teacher(teacher, image_size, "float32")
    shards = write_pseudo_labels(out, open_source(data), chosen, count, seed=seed, whole=whole)
    print(f"{out}: {counted(count, 'window')} in {counted(len(shards), 'shard')}")


@app.command(name="index")
def index(data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]) -> None:
    """Index tar shards, which training would do at its start, and say what a source holds.

    Args:
      data: Tar shards, a folder of them, a folder of photos, or a COCO .json with or without its folder of photos.
    """
    from repvit_sam_jax.data import open_source

    source = open_source(data)
    print(f"{len(source)} photos, fingerprint {source.fingerprint[:16]}; the first is {source[0].name}")


@app.command(name="distill")
def distill(
    recipe: Recipe,
    run: Run,
    *,
    data: tuple[str, ...],
    held_out: tuple[str, ...] = (),
    embeddings: Path | None = None,
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    strict: bool = False,
    evals_root: Path | None = None,
    workers: int = 0,
    threads: int = 4,
    tensorboard: bool = False,
    profile: int | None = None,
    distributed: bool = False,
    heartbeat_timeout: int = 100,
) -> None:
    """Run a recipe, from its latest checkpoint if it was begun before. Left by SIGTERM, the exit status is 143.

    Args:
      recipe: Its name, or a recipe.json.
      run: The run's folder.
      data: Photos: tar shards in SA-1B's layout, a folder of them, a folder of photos, or a COCO .json.
      held_out: Likewise, with masks: what the student is evaluated on.
      embeddings: Cache of the teacher's embeddings, from `embed`.
      settings: Values in place of the recipe's, such as optimizer.learning_rate=1e-4 teacher=sam_vit_h.safetensors
      strict: Stop at a damaged photo in place of leaving it out.
      evals_root: Folder of the data of the tasks that the recipe's `evals` names, as `repvit-sam eval all` takes it.
      workers: Processes that read photos, besides this one.
      threads: Threads that read photos, in each of them.
      tensorboard: Write metrics for TensorBoard too.
      profile: Trace five steps from this one on.
      distributed: One of several processes: call jax.distributed.initialize, which finds the others on TPU slices,
        under Slurm and under Open MPI.
      heartbeat_timeout: Seconds after which the others give up on a process that is lost.
    """
    from repvit_sam_jax.data import Reading

    from .recipe import get_recipe

    inputs = data, held_out, embeddings, strict, evals_root, Reading(threads=threads, workers=workers)
    chosen = get_recipe(recipe, settings)
    with contextlib.ExitStack() as stack:
        if distributed:
            from .processes import joined

            stack.enter_context(joined(heartbeat_timeout))
        from . import loop

        now = loop.Run(chosen, run, loop.Inputs(*inputs))
        now.fit(tensorboard=tensorboard, profile=profile)
    if not now.finished:
        sys.exit(128 + signal.SIGTERM)


@app.command(name="finetune")
def finetune(
    run: Run,
    *,
    data: tuple[str, ...],
    weights: str,
    held_out: tuple[str, ...] = (),
    parts: Literal["decoder", "lora", "all"] = "decoder",
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    workers: int = 0,
    threads: int = 4,
) -> None:
    """Fine-tune a segmenter on one's own masks, and tell by held-out photos whether it helps.

    Into the run's folder go finetuned.safetensors, finetuned.pt, and before and after as a table and a picture. What is
    kept is the best state by held-out IoU, and the run ends when that gets no better. An interrupted run goes on.

    Args:
      run: The run's folder.
      data: Photos with masks: a COCO .json with or without its folder of photos; a folder of photos and one of masks
        as pictures, or one folder with both as images and masks; or tar shards in SA-1B's layout.
      weights: The segmenter to begin with: a checkpoint of this library, of PyTorch or of transformers, or a name such
        as repvit_sam or demo.
      held_out: Photos to measure on, likewise; if not given, a fifth of the data, at most 64 photos.
      parts: What learns: the mask decoder; or besides the whole image encoder; or besides low-rank updates of its
        attention, for SAM's ViTs.
      settings: As for `distill`; the recipe is `finetune`.
      workers: Processes that read photos, besides this one.
      threads: Threads that read photos, in each of them.
    """
    from repvit_sam_jax.data import Reading

    from .finetune import finetune as begin

    reading = Reading(threads=threads, workers=workers)
    done = begin(run, data, weights, held_out=held_out, parts=parts, settings=settings, reading=reading)
    if done is None:
        sys.exit(128 + signal.SIGTERM)
    print(done.report)
    if not done.step:
        print("nothing was better than the start, which was kept: give more photos, or --set optimizer.learning_rate=")
    print(f"wrote {done.weights} and {done.picture}")
    target = done.weights.with_suffix(".pt")
    if importlib.util.find_spec("torch") is None:
        print(f"for PyTorch, where it is installed: repvit-sam convert to-torch {done.weights} {target}")
        return
    importlib.import_module(place("convert.to_torch")).to_torch(done.weights, target)
    print(f"wrote {target}")


@app.command(name="embed")
def embed(
    teacher: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")],
    out: Out,
    *,
    data: tuple[str, ...],
    image_size: int = 1024,
    dtype: Dtype = "bfloat16",
    batch_size: int = 8,
    workers: int = 0,
    threads: int = 4,
) -> None:
    """Write a teacher's embeddings of all photos; an interrupted run goes on.

    Args:
      teacher: A .safetensors file.
      out: The cache's folder, new or of the same teacher and photos.
      data: Photos, as for `distill`.
      image_size: The models' side S, in pixels.
      dtype: The teacher's arithmetic, as in the recipe that is to use the cache.
      batch_size: Photos at once.
      workers: Processes that read photos, besides this one.
      threads: Threads that read photos, in each of them.
    """
    from tqdm import tqdm

    from repvit_sam_jax.data import Reading, open_source

    from .embeddings import embed as write
    from .teacher import load_teacher

    source = open_source(data)
    with tqdm(total=len(source), unit="photo", disable=None) as bar:
        reading = Reading(threads=threads, workers=workers)
        damaged = write(
            out, load_teacher(teacher, image_size, dtype), source, batch_size, reading=reading, progress=bar.update
        )
    print(f"{out}: {len(source) - damaged} photos" + f", {damaged} damaged ones left out" * bool(damaged))


@app.command(name="export")
def export(
    run: Run,
    out: Out,
    *,
    mean_with: tuple[Path, ...] = (),
    form: Literal["deploy", "train"] = "deploy",
    checkpoint: Literal["latest", "best"] | int = "latest",
    dtype: Dtype = "float32",
) -> None:
    """Write what a run has learnt to a .safetensors file.

    Args:
      run: The run's folder.
      out: The file.
      mean_with: Other runs of the same student from the same start, or files in training form such as the start itself,
        to average the weights with.
      form: The training form can start another run.
      checkpoint: The best one by held-out IoU, or a step's.
      dtype: Kernels and all other arrays of two or more axes; bfloat16 halves the size of the file.
    """
    from .export import export as write

    step = write(run, out, mean_with=mean_with, form=form, which=checkpoint, dtype=dtype)
    print(f"{out}: step {step}, {form} form")


@app.command(name="aot")
def aot(
    recipe: Recipe,
    *,
    topology: str = "v5e:2x4",
    photos_per_chip: int | None = None,
    teacher: str = "sam_vit_h",
    cached: bool = False,
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
) -> None:
    """Compile a recipe's step for a TPU slice, without a TPU: memory, collectives, estimated time.

    Args:
      recipe: Its name, or a recipe.json.
      topology: The slice, such as v5e:4x4 or v6e:2x4.
      photos_per_chip: In place of the recipe's batch size.
      teacher: The teacher's preset.
      cached: Embeddings of the teacher come from a cache.
      settings: As for `distill`.
    """
    from .aot import describe, estimate, per_chip
    from .recipe import get_recipe

    chosen = get_recipe(recipe, settings)
    if photos_per_chip is not None:
        chosen = per_chip(chosen, topology, photos_per_chip)
    print(describe(estimate(chosen, topology, teacher=teacher, cached=cached)))


@app.command(name="recipes")
def recipes() -> None:
    """List the recipes."""
    from .recipe import recipes as find

    for name, recipe in sorted(find().items()):
        print(f"{name}: {recipe.student}, {'prompts in the loop' if recipe.losses.masks else 'embeddings alone'}")


def main(args: Sequence[str] | None = None, prog: str = "train") -> None:
    """Entry point of `train`, with its arguments or those of the process."""
    run_commands(app, args, prog, __doc__)


if __name__ == "__main__":
    main()

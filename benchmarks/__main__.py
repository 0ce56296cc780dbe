"""`python -m benchmarks`: JAX against PyTorch, ONNX Runtime and OpenVINO on the same weights, images and threads."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from convert.synthetic import synthetic_image
from repvit_sam_jax import Prompts, Sam, transforms
from repvit_sam_jax.config import SamConfig, get_config
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.terminal import errors_in_one_line

from . import report
from .harness import Candidate, environment, timed

Suite = Literal["encoder", "decoder", "everything", "startup", "tpu-cost", "models", "input", "all"]


def measure(
    suites: Annotated[tuple[Suite, ...], tyro.conf.Positional] = ("all",),
    *,
    data: tuple[Path, ...] = (),
    preset: str = "repvit_sam",
    image_size: int | None = None,
    batch: tuple[int, ...] = (1,),
    prompts: tuple[int, ...] = (1, 64),
    points: int = 32,
    rounds: int = 5,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    markdown: bool = False,
) -> None:
    """Time the models on synthetic weights; the results are compared, and a wrong one ends the run.

    Args:
      suites: What to measure. "everything" is the automatic mask generator, "startup" what comes before the first
        result, "tpu-cost" an estimate by the TPU compiler, "models" a table of the published segmenters, which needs 15
        GB of memory and a quarter of an hour, and "input" that of training. The last two are not among "all".
      data: For "input", photos as `repvit-sam train index` takes them.
      preset: The model.
      image_size: Input side in pixels, if not the preset's.
      batch: Images at once, for the encoder and "input".
      prompts: Point prompts on one image, for the decoder.
      points: Points along a side of the image, for "everything".
      rounds: Timed runs of each candidate; the candidates take turns. "everything" has two at most.
      as_json: Print JSON.
      markdown: Print tables for a README, in place of ratios alone.
    """
    if as_json and markdown:
        raise ValueError("give --json or --markdown, not both")
    if bool(data) != ("input" in suites):
        raise ValueError("input needs photos, python -m benchmarks input --data DATA, and nothing else takes any")
    for name, value in {"batch": min(batch), "prompts": min(prompts), "points": points, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    config = get_config(preset, image_size)
    sections: dict[str, Any] = {}
    for name, measure in _sections(suites, data, config, batch, prompts, points, rounds).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        sections[name] = measure()
    result = {"environment": environment(), "preset": preset, "image_size": config.image_size, "sections": sections}
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(report.to_markdown(result) if markdown else report.to_text(result))


def _sections(
    suites: Sequence[Suite],
    data: tuple[Path, ...],
    config: SamConfig,
    batch: tuple[int, ...],
    prompts: tuple[int, ...],
    points: int,
    rounds: int,
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Title -> what measures it, in the order in which they are run."""
    from train import tpu

    from . import everything, models, startup, tpu_cost

    found: dict[str, Callable[[], dict[str, Any]]] = {}
    if "input" in suites:
        from .input import input_pipeline

        run = lambda n: functools.partial(input_pipeline, data, config.image_size, n, rounds)
        found |= {f"input of training, batch {n}": run(n) for n in batch}
    if "models" in suites:
        found["models"] = lambda: models.table(image_size=config.image_size, rounds=rounds)
    chosen = {"encoder", "decoder", "everything", "startup", "tpu-cost"} if "all" in suites else set(suites)
    if not chosen - {"input", "models"}:
        return found
    model, params = Sam(config), models.deploy_params(config)
    embedding = functools.cache(lambda: np.asarray(models.encode(model, params, _images(config, 1))))
    if "encoder" in chosen:
        for n in batch:
            found[f"encoder, batch {n}"] = functools.partial(_encoders, config, params, n, rounds)
    if "decoder" in chosen:
        for n in prompts:
            title = f"decoder, {n} point prompt{'s' if n > 1 else ''}"
            found[title] = functools.partial(_decoders, model, params, embedding, n, rounds)
    if "everything" in chosen:
        title = f"automatic mask generation, {points} x {points} points"
        found[title] = functools.partial(everything.everything, config, params, points, min(rounds, 2))
    if "startup" in chosen:
        found["start-up"] = functools.partial(startup.startup, config, params, rounds)
    if "all" in suites and not tpu.LIBTPU.exists():
        print(f"no estimate for TPUs: no libtpu at {tpu.LIBTPU}", file=sys.stderr)
    elif "tpu-cost" in chosen:
        for chip in tpu.CHIPS:
            found[f"estimate for a TPU {chip}"] = functools.partial(tpu_cost.tpu_cost, config, chip)
    return found


def _images(config: SamConfig, count: int) -> np.ndarray:
    size = config.image_size
    image = transforms.preprocess(synthetic_image(size * 3 // 4, size), size)
    return np.concatenate([np.roll(image, 10 * i, axis=2) for i in range(count)])


def _encoders(config: SamConfig, params: Params, count: int, rounds: int) -> dict[str, Any]:
    from . import models, rivals

    model, images = Sam(config), _images(config, count)
    theirs = [*rivals.encoders(model, params, images), *rivals.compiled_encoders(model, params, images)]
    theirs += rivals.exported_encoder(model, params, images)
    return timed([*theirs, *models.encoders(config, params, images)], rounds)


def _decoders(model: Sam, params: Params, embed: Callable[[], np.ndarray], count: int, rounds: int) -> dict[str, Any]:
    from . import models, rivals

    decode = jax.jit(Sam.decode, static_argnums=0)
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, model.config.image_size, (1, count, 1, 2)).astype(np.float32)
    given = Prompts(coords, np.ones((1, count, 1), np.int32), np.ones((1, count, 1), bool))
    embedding = embed()
    on_device = jax.device_put(embedding)

    def ours(name: str, model: Sam, tolerance: float) -> Candidate:
        kept = models.compact(model, params)
        run = lambda: jax.block_until_ready(decode(model, kept, on_device, given)[0][0])
        return Candidate(name, run, "torch_fp32", tolerance)

    half = Sam(model.config, dtype="bfloat16")
    theirs = rivals.decoders(model, params, embedding, given)
    return timed([*theirs, ours("jax_fp32", model, 1e-5), ours("jax_bf16", half, 5e-2)], rounds)


def main(args: Sequence[str] | None = None, prog: str = "benchmarks") -> None:
    """Entry point of `benchmarks`, with its arguments or those of the process."""
    with errors_in_one_line():
        tyro.cli(measure, args=args, prog=prog, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()

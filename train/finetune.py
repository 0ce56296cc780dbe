"""Fine-tuning on one's own masks: photos set aside, a run that ends when it stops to help, its files, before and after.

`finetune` is a `loop.Run` with defaults for the size of the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import jax

from repvit_sam_jax import data
from repvit_sam_jax.config import Form, SamConfig
from repvit_sam_jax.data.records import DamagedRecordError, Source, Subset
from repvit_sam_jax.evals import protocols
from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.terminal import counted
from repvit_sam_jax.weights.loading import read_params

from . import loop
from .before_after import draw, table
from .export import export
from .inputs import Inputs
from .recipe import LORA, Recipe, get_recipe

Parts = Literal["decoder", "lora", "all"]

TRAINED: dict[Parts, tuple[str, ...]] = {
    "decoder": ("mask_decoder",),
    "lora": (LORA, "mask_decoder"),
    "all": ("image_encoder", "mask_decoder"),
}
HELD_OUT = 5
"""One of so many photos is set aside, unless there are held-out ones."""
MOST_HELD_OUT = 64
PASSES, FEWEST, MOST = 6, 300, 3000
"""Steps: passes through the photos, but no fewer and no more of them than these; patience ends most runs earlier."""
EVALUATIONS = 6
"""Of a run that takes all its steps, besides the one of its start."""
SHOWN = 4
"""Held-out photos in the picture."""


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What came of it; results are those on the held-out photos."""

    before: protocols.Result
    after: protocols.Result
    step: int
    """The step that was kept, by the mean IoU for boxes and centre points; 0 if none was better than the start."""
    weights: Path
    picture: Path
    report: str


def finetune(
    run: Path,
    photos: Sequence[str],
    weights: str,
    *,
    held_out: Sequence[str] = (),
    parts: Parts = "decoder",
    settings: Sequence[str] = (),
    reading: data.Reading | None = None,
) -> Finetuned | None:
    """Fine-tune a segmenter, and keep what is best on photos that it did not learn from.

    Args:
      run: the run's folder, which also gets `finetuned.safetensors`, in the form of the file that it began with, the
        table `before_after.md` and the picture `before_after.png`. The same call goes on with a run that was stopped.
      photos: what `data.open_source` takes, with masks.
      weights: what `repvit_sam_jax.load` takes.
      held_out: photos to measure on, likewise; if not given, a fifth of the others, at most 64, chosen by what they
        hold.
      parts: the mask decoder; or besides the whole image encoder; or besides LoRA's updates of its attention.
      settings: of the recipe, as `get_recipe` takes them.
      reading: how photos are read.

    Returns:
      What came of it; None if the run was stopped by a signal.

    Raises:
      FileNotFoundError, CheckpointError: as `data.open_source` and `repvit_sam_jax.load`; `all` needs the training form
        of encoders with BatchNorm.
      ValueError: fewer than two photos with masks, photos that are held out and learnt from, or values that do not fit.
      TrainingError: a loss is not finite.
    """
    learnt, measured = _parted(data.open_source(photos), data.open_source(held_out) if held_out else None)
    recipe, form = _recipe(weights, len(learnt), parts, settings)
    inputs = Inputs(learnt, measured, reading=reading or data.Reading())
    now = loop.Run(recipe, run, inputs)
    now.fit()
    if not now.finished:
        return None
    out = run / "finetuned.safetensors"
    step = export(run, out, form=form, which="best")
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    results = {line.pop("step"): line for line in evaluations}
    report = table(results[0], results[step])
    about = f"{recipe.student}, {weights}; {parts}; {len(learnt)} photos to learn from, {len(measured)} held out"
    text = f"{about}; step {step} of {max(results)} kept\n\n{report}\n"
    write_atomically(run / "before_after.md", lambda path: path.write_text(text))
    picture = run / "before_after.png"
    sheet = draw([measured[i] for i in range(min(SHOWN, len(measured)))], weights, out)
    write_atomically(picture, lambda path: sheet.save(path, "PNG"))
    return Finetuned(results[0], results[step], step, out, picture, text)


def _recipe(weights: str, count: int, parts: Parts, settings: Sequence[str]) -> tuple[Recipe, Form]:
    """The recipe for so many photos, and the form of the weights."""
    config, form, _ = read_params(weights)
    if not isinstance(config, SamConfig):
        raise ValueError(f"{weights} holds the classifier {config.name}, no segmenter")
    if parts == "all" and config.has_batch_norm and form == "deploy":
        raise ValueError(
            f"{weights} is in deploy form: its BatchNorms are folded, so its encoder can't learn; fine-tune the "
            "decoder alone (--parts decoder), or give the file in training form"
        )
    recipe = get_recipe("finetune")
    steps = min(max(round(PASSES * count / recipe.batch_size), FEWEST), MOST)
    chosen = {
        "init": weights,
        "student": config.name,
        "image_size": config.image_size,
        "trained": ",".join(TRAINED[parts]),
        "dtype": "float32" if jax.default_backend() == "cpu" else "bfloat16",
        "steps": steps,
        "evaluate_every": steps // EVALUATIONS,
        "checkpoint_every": steps // EVALUATIONS,
    }
    if parts != "decoder":  # more can be forgotten
        chosen["optimizer.learning_rate"] = recipe.optimizer.learning_rate / 3
    return get_recipe("finetune", [*(f"{key}={value}" for key, value in chosen.items()), *settings]), form


def _parted(source: Source, held_out: Source | None) -> tuple[Source, Source]:
    """Photos with masks to learn from, and others to measure on."""
    digests = _digests(source)
    if held_out is not None:
        others = _digests(held_out)
        both = set(digests.values()) & set(others.values())
        if both:
            names = [held_out[i].name for i, digest in others.items() if digest in both]
            raise ValueError(
                f"held out and to learn from at once, which would flatter the result: {counted(len(names), 'photo')}, "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; leave them out of one of the two"
            )
        if not digests or not others:
            raise ValueError("no photo with masks " + ("to learn from" if others else "is held out"))
        return Subset(source, list(digests)), Subset(held_out, list(others))
    distinct = sorted(set(digests.values()))
    if len(distinct) < 2:
        raise ValueError(
            f"{counted(len(distinct), 'photo')} with masks: fine-tuning needs two at least, one to learn from and one "
            "held out, which tells whether it helps"
        )
    aside = set(distinct[: min(max(len(distinct) // HELD_OUT, 1), MOST_HELD_OUT)])
    groups = [i for i in digests if digests[i] not in aside], [i for i in digests if digests[i] in aside]
    return Subset(source, groups[0]), Subset(source, groups[1])


def _digests(source: Source) -> dict[int, str]:
    """SHA-256 of the photos that can be used, by their number; a warning names others."""
    config = data.ExampleConfig(64, 1)

    def one(i: int) -> str | DamagedRecordError:
        try:
            record = source[i]
            data.make_example(record, config)
        except DamagedRecordError as error:
            return error
        return hashlib.sha256(record.photo).hexdigest()

    with ThreadPoolExecutor() as pool:
        found = dict(enumerate(pool.map(one, range(len(source)))))
    bad = [error for error in found.values() if isinstance(error, DamagedRecordError)]
    if bad:
        what = counted(len(bad), "photo")
        warnings.warn(f"left out: {what}, damaged or without masks, such as {bad[0]}", stacklevel=3)
    return {i: digest for i, digest in found.items() if isinstance(digest, str)}

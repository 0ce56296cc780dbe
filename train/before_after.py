"""What fine-tuning changed, as a table and as a picture."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from repvit_sam_jax import SamPredictor, data, load, transforms
from repvit_sam_jax.data.records import Record
from repvit_sam_jax.evals import pictures, protocols
from repvit_sam_jax.evals.metrics import iou
from repvit_sam_jax.inference.masks import box_of
from repvit_sam_jax.inference.overlay import draw_overlay
from repvit_sam_jax.inference.photos import best_mask
from repvit_sam_jax.inference.prompts import Prompt
from repvit_sam_jax.inference.rle import counts_to_mask

NAMES = {
    "box": "box",
    "centre": "centre point",
    "centre_oracle": "centre point, best of three",
    "points3": "three points",
}
VISIBLE = 0.01
"""Share of a photo that an object of the picture covers, at least."""


def table(before: protocols.Result, after: protocols.Result) -> str:
    """Mean IoUs in percent against the annotations, by kind of prompt, as a Markdown table."""
    then, now = before["ground_truth"], after["ground_truth"]
    lines = ["| mIoU for | before | after | change |", "|---|---:|---:|---:|"]
    for kind, name in NAMES.items():
        old, new = 100 * then[kind]["all"], 100 * now[kind]["all"]
        lines.append(f"| {name} | {old:.1f} | {new:.1f} | {new - old:+.1f} |")
    return "\n".join([*lines, f"| objects | {now['box']['count']['all']} | | |"])


def draw(records: Sequence[Record], before: str | os.PathLike, after: str | os.PathLike) -> Image.Image:
    """A row a photo: an annotated object, and masks for its box and its centre by both models, with their IoUs.

    The object is the one of median area among those that cover one per cent of the photo, or the largest one.

    Args:
      records: photos with masks.
      before: weights, as `load` takes them; they run at the image size of `after`.
      after: likewise.
    """
    questions = [_question(record) for record in records]
    rows = [[draw_overlay(photo, mask, caption="annotation")] for photo, mask, _ in questions]
    model, params = load(after)
    earlier = load(before, image_size=model.config.image_size)
    drawn = [list(_answers(SamPredictor(*loaded), questions)) for loaded in (earlier, (model, params))]
    for row, then, now in zip(rows, *drawn, strict=True):
        for pair in zip(then, now, strict=True):
            row += pair
    titles = ["annotation", *(f"{prompt}, {when}" for prompt in ("box", "point") for when in ("before", "after"))]
    return pictures.sheet([[Image.fromarray(panel) for panel in row] for row in rows], titles)


_Question = tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"], tuple[Prompt, Prompt]]
"""A photo, an object's mask, and its box and its centre as prompts."""


def _question(record: Record) -> _Question:
    photo = transforms.decode_image(io.BytesIO(record.photo), record.name)
    size = photo.shape[0], photo.shape[1]
    masks = [counts_to_mask(counts, size) for counts in data.read_annotations(record.annotations, size)]
    masks.sort(key=np.count_nonzero)
    visible = [mask for mask in masks if mask.mean() >= VISIBLE] or masks[-1:]
    mask = visible[len(visible) // 2]
    box = box_of(mask)
    _, x, y = protocols.farthest_pixel(mask)
    return photo, mask, (Prompt(box=box), Prompt([[x, y]], [1]))


def _answers(predictor: SamPredictor, questions: Sequence[_Question]) -> Iterator[list[UInt8[np.ndarray, "h w 3"]]]:
    for photo, mask, prompts in questions:
        predictor.set_image(photo)
        panels = []
        for prompt in prompts:
            box = None if prompt.box is None else prompt.box.tolist()
            given = prompt.points.tolist(), prompt.labels.tolist(), box
            found, _ = best_mask(predictor.predict(*given, multimask_output=prompt.is_ambiguous))
            caption = f"IoU {100 * float(iou(found[None], mask[None])[0]):.1f}"
            panels.append(draw_overlay(photo, found, *given, caption=caption))
        yield panels

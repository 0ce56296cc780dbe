"""Boxes of detectors, in COCO's form of results: a list of {image_id, category_id, bbox [x, y, w, h], score}.

MMDetection's `results.bbox.json`, Detectron2's `coco_instances_results.json` and the boxes that EfficientViT-SAM
publishes have this form; what else they hold, such as masks, is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ...data.datasets import layout

FORM = "boxes in COCO's form of results, a list of {image_id, category_id, bbox [x, y, w, h], score}"
FIELDS = ("image_id", "category_id", "bbox", "score")


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Boxes of a photo, best first; those of the same score in the file's order, and repeated ones as they are."""

    corners: Float[np.ndarray, "n 4"]
    """XYXY in pixels of the photo."""
    categories: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]


NONE = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


def read(
    path: Path, images: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]], most: int
) -> dict[int, Boxes]:
    """The boxes of a JSON file by id of the image; see `group`."""
    return group(layout.read_json(path, FORM), images, categories, most, str(path))


def group(
    results: Any, images: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]], most: int, name: str
) -> dict[int, Boxes]:
    """Boxes by id of the image; images without one are left out.

    Args:
      results: what JSON holds.
      images: those of the annotations, with `id`, `height` and `width`.
      categories: likewise, with `id`.
      most: boxes of an image that are kept, those with the highest scores.
      name: of the file, for errors.

    Raises:
      ValueError: the form is another one, there is no box, an id is unknown, a number is not finite, or a box is
        inverted or lies wholly outside its photo. Boxes may reach over the photo's edge, and be a line or a point.
    """
    if not isinstance(results, list) or not results:
        raise ValueError(f"{name} holds no {FORM}")
    try:
        ids, kinds = (np.array([result[key] for result in results]) for key in FIELDS[:2])
        boxes, scores = (np.array([result[key] for result in results], np.float64) for key in FIELDS[2:])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} holds other things than {FORM}: {type(error).__name__}: {error}") from error
    if boxes.shape != (len(results), 4) or scores.ndim != 1 or ids.dtype.kind != "i" or kinds.dtype.kind != "i":
        raise ValueError(f"{name} holds other things than {FORM}: a box is four numbers, ids are integers")
    _check_ids(ids, [image["id"] for image in images], name, "image_id", "are these boxes for other photos?")
    hint = "COCO's categories are numbered as in its annotations, not from 0 to 79"
    _check_ids(kinds, [category["id"] for category in categories], name, "category_id", hint)
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    _check(boxes, corners, scores, np.array([sizes[number] for number in ids.tolist()]), ids, name)
    order = np.lexsort((-scores, ids))  # stable
    starts = np.flatnonzero(np.diff(ids[order], prepend=ids[order[0]] - 1))
    chosen = [part[:most] for part in np.split(order, starts[1:])]
    return {int(ids[at[0]]): Boxes(corners[at], kinds[at], scores[at]) for at in chosen}


def _check_ids(given: Int[np.ndarray, "n"], known: Sequence[int], name: str, key: str, hint: str) -> None:
    if unknown := sorted(set(given.tolist()) - set(known)):
        raise ValueError(f"{name}: {len(unknown)} {key} are not among the annotations', such as {unknown[0]}; {hint}")


def _check(
    boxes: Float[np.ndarray, "n 4"],
    corners: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, "n"],
    sizes: Int[np.ndarray, "n 2"],
    ids: Int[np.ndarray, "n"],
    name: str,
) -> None:
    """Raises ValueError for the first box that is wrong, or if most boxes seem to be corners."""
    with np.errstate(invalid="ignore"):
        faults = {
            "is not finite": ~(np.isfinite(boxes).all(1) & np.isfinite(scores)),
            "has a negative width or height; a box is [x, y, w, h]": (boxes[:, 2:] < 0).any(1),
            "lies outside its photo": (corners[:, 2:] < 0).any(1) | (corners[:, :2] > sizes).any(1),
        }
        far = (corners[:, 2:] > 1.1 * sizes).any(1).mean()
    for fault, wrong in faults.items():
        if wrong.any():
            at = int(np.argmax(wrong))
            shown = f"{boxes[at].tolist()} of image {ids[at]}, {sizes[at][0]} x {sizes[at][1]} pixels"
            raise ValueError(f"{name}: box {at}, {shown}, with score {scores[at]}, {fault}")
    if far > 0.5:
        raise ValueError(
            f"{name}: {far:.0%} of the boxes reach far over their photos' edges; they seem to be [x1, y1, x2, y2], but "
            "should be [x, y, w, h]"
        )

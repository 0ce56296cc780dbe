"""Zero-shot salient objects on DUTS-TE ("Segment Anything Is Not Always Perfect", arXiv 2304.05750).

The automatic mask generator finds everything on a photo, with SAM's own settings; the mask nearest to the truth by F1
is taken, and its mean absolute error enters the mean. So the choice knows the truth, and the error says whether the
salient object is among the masks. A photo without a mask that meets the truth has an error of 1, and so has one whose
truth is empty.

The official scripts (LiuTingWed/SAM-Not-Perfect, `amg.py` and `sam_f1_dice_mae.py`) leave all of the generator's
arguments at SAM's defaults; so does this, but for a model that has thresholds of its own (`demo`), and a result says
which they were. They take masks in the order in which a disk lists the files; here it is the generator's. It matters
only where two masks have the same F1. The mean F1 that they print is half of the one here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from ...data.datasets.duts import Duts
from ...inference import overlay, rle
from ...inference.backends import ENCODE_BATCH
from ...inference.mask_generator import SamAutomaticMaskGenerator
from ..metrics import saliency
from ..segmenters import Segmenter
from .protocol import Picture

POINTS_PER_SIDE = 32
NMS = 0.7
"""Masks whose boxes have a higher IoU are duplicates."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A photo and its truth."""

    photo: Picture
    truth: UInt8[np.ndarray, "h w"]
    """Gray, of another size than the photo's in rare cases."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """All masks of a photo, and its truth."""

    masks: list[dict[str, Any]]
    """COCO's compressed RLE, best predicted IoU first."""
    truth: UInt8[np.ndarray, "h w"]


class SalientObjects:
    """The task; see the module."""

    name, group = "duts", ENCODE_BATCH

    def __init__(self, data: Duts) -> None:
        self.data, self.keys, self.score = data, data.names, score
        self.settings: dict[str, Any] = {"points_per_side": POINTS_PER_SIDE, "box_nms_thresh": NMS}
        self.settings |= {"thresholds": "the model's own, in generator_defaults"}

    def load(self, key: str) -> Item:
        """A photo and its truth."""
        return Item(self.data.photo(key), self.data.truth(key))

    def segment(self, subject: Segmenter, items: Sequence[Item]) -> list[Answer]:
        """All masks of each photo."""
        generator = SamAutomaticMaskGenerator(
            subject.predictor.backend, points_per_side=POINTS_PER_SIDE, box_nms_thresh=NMS, output_mode="coco_rle"
        )
        found = generator.generate_batch([item.photo for item in items])
        pairs = zip(found, items, strict=True)
        return [Answer([record["segmentation"] for record in records], item.truth) for records, item in pairs]

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """The mean absolute error `MAE` and the best `F1`, both means over photos."""
        photos = [saliency.Nearest(record["mask"], record["error"], record["f1"]) for record in records.values()]
        numbers = {"MAE": saliency.mean_error(photos), "F1": float(np.mean([photo.f1 for photo in photos]))}
        counts = {"photos": len(photos), "photos without a mask": sum(not r["masks"] for r in records.values())}
        counts["photos whose truth no mask meets"] = sum(photo.number is None for photo in photos)
        return numbers, counts

    def panels(self, item: Item) -> dict[str, Picture]:
        """The photo and the salient object."""
        return {"photo": item.photo, "truth": np.repeat(item.truth[..., None], 3, -1)}

    def panel(self, item: Item, answer: Answer) -> Picture:
        """The nearest mask over the photo, or the photo if there is none."""
        number = score(answer)["mask"]
        return item.photo if number is None else overlay.draw_overlay(item.photo, _decoded(answer.masks[number]))


def open_task(data: Path, proposals: Path | None = None) -> SalientObjects:
    """As `tasks.open_task`; salient objects take no proposals."""
    if proposals is not None:
        raise ValueError("duts starts from a grid of points: leave --proposals out")
    return SalientObjects(Duts(data))


def score(answer: Answer) -> dict[str, Any]:
    """`masks`, how many there are, `mask`, the number of the nearest or None, its `error` and its `f1`."""
    nearest = saliency.nearest_mask(map(_decoded, answer.masks), saliency.read_truth(answer.truth))
    return {"masks": len(answer.masks), "mask": nearest.number, "error": nearest.error, "f1": nearest.f1}


def _decoded(mask: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    height, width = mask["size"]
    return rle.counts_to_mask(rle.read_segmentation(mask, (height, width)), (height, width))

"""Zero-shot instances on COCO val2017 from a detector's boxes (RepViT-SAM, arXiv 2312.05760).

The protocol is RockeyCoss/Prompt-Segment-Anything's, with its `use_sam_iou` and without `best_in_multi_mask`: each of a
photo's best 300 boxes prompts for the decoder's single mask, at the photo's size; its score is the detector's times the
predicted IoU. The published numbers are for the boxes of H-Deformable-DETR with Swin-L.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ...data.datasets.coco import Coco, open_coco
from ...inference import masks, overlay, rle
from ...inference.backends import ENCODE_BATCH
from ...inference.predictor import Dispatched, EmbeddedImage, SamPredictor
from ...inference.prompts import Prompt
from ..metrics import instances
from ..proposals import boxes as proposals
from ..proposals.boxes import Boxes
from ..segmenters import Segmenter
from .protocol import Picture

MOST = 300
"""Boxes of a photo that are taken."""
DRAWN = 0.3
"""Scores from which on boxes are seen on pictures."""

Mask = dict[str, Any]
"""COCO's compressed RLE."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A photo, a detector's boxes on it, and its annotated objects."""

    number: int
    """The image's id."""
    photo: Picture
    boxes: Boxes
    truth: list[dict[str, Any]]


class Instances:
    """The task; see the module."""

    name, group = "coco", ENCODE_BATCH

    def __init__(self, data: Coco, boxes: Mapping[int, Boxes], detections: Sequence[int], most: int) -> None:
        """Args: photos, boxes by id of the image, counts of `average_precision`, and how many boxes were taken."""
        self.data, self.boxes, self.detections, self.keys = data, boxes, detections, data.keys
        self.settings: dict[str, Any] = {"boxes": most, "detections": list(detections), "score": "box x predicted IoU"}
        self.score = score

    def load(self, key: str) -> Item:
        """A photo with its boxes."""
        number = self.data.images[key]["id"]
        boxes = self.boxes.get(number, proposals.NONE)
        return Item(number, self.data.photo(key), boxes, self.data.annotations(key))

    def segment(self, subject: Segmenter, items: Sequence[Item]) -> list[list[dict[str, Any]]]:
        """Results in COCO's form, of each photo."""
        return segment(subject, items, weighted=True)

    def average_precision(self, records: Mapping[str, Any]) -> dict[str, float]:
        """`metrics.instances.average_precision` over the photos of these records."""
        results = [result for record in records.values() for result in record]
        return instances.average_precision(self.data.truth(records), results, self.detections)

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """AP and its kin; photos without boxes count."""
        return self.average_precision(records), {"photos": len(records), "boxes": sum(map(len, records.values()))}

    def panels(self, item: Item) -> dict[str, Picture]:
        """The photo, and its objects."""
        return {"photo": item.photo, "annotations": draw(item.photo, (a["segmentation"] for a in item.truth))}

    def panel(self, item: Item, answer: Sequence[Mapping[str, Any]]) -> Picture:
        """The masks whose scores are not low."""
        return draw(item.photo, (result["segmentation"] for result in answer if result["score"] >= DRAWN))


def open_task(data: Path, proposals: Path | None = None) -> Instances:
    """As `tasks.open_task`; proposals are a file of boxes, see `proposals.boxes`."""
    opened = open_coco(data)
    return Instances(opened, read_boxes(opened, proposals, MOST), instances.COCO_DETECTIONS, MOST)


def read_boxes(data: Coco, path: Path | None, most: int) -> dict[int, Boxes]:
    """The boxes of a file by id of the image. Raises ValueError if no file was given, or as `proposals.boxes.read`."""
    if path is None:
        raise ValueError(f"masks are for a detector's boxes: give --proposals, a JSON file with {proposals.FORM}")
    return proposals.read(path, list(data.images.values()), data.categories, most)


def segment(subject: Segmenter, items: Sequence[Item], weighted: bool) -> list[list[dict[str, Any]]]:
    """Results in COCO's form, of each photo, with single masks; scores are the boxes', or times predicted IoUs."""
    embedded = subject.predictor.embed([item.photo for item in items])
    answers = []
    for photo, item in zip(embedded, items, strict=True):
        found, predicted = masks_of_boxes(subject.predictor, photo, item.boxes.corners, best_of_three=False)
        answers.append(as_results(item, found, item.boxes.scores * predicted if weighted else item.boxes.scores))
    return answers


def masks_of_boxes(
    predictor: SamPredictor, photo: EmbeddedImage, corners: Float[np.ndarray, "n 4"], best_of_three: bool
) -> tuple[list[Mask], Float[np.ndarray, "n"]]:
    """A mask for each box, at the photo's size, and its predicted IoU.

    Args:
      predictor: the segmenter.
      photo: embedded.
      corners: boxes, XYXY in pixels of the photo; there may be none.
      best_of_three: take the best of three masks, not the decoder's single one.
    """
    if not len(corners):
        return [], np.zeros(0, np.float32)
    prompts = [Prompt(box=box) for box in corners]
    found, predicted = fetch(predictor, predictor.dispatch(photo, prompts, multimask_output=best_of_three))
    return [rle.counts_to_coco(counts, photo.size) for counts in found], predicted


def fetch(predictor: SamPredictor, dispatched: Dispatched) -> tuple[list[rle.Counts], Float[np.ndarray, "n"]]:
    """Masks at the photo's size, and their predicted IoUs; of a prompt's three the one with the highest, or the first.

    Returns:
      Lengths of runs, and numbers.
    """
    _, predicted, low_res = predictor.fetch(dispatched, return_low_res_only=True)
    config, best = predictor.config, predicted.argmax(1)
    upscaler = masks.Upscaler(dispatched.size, config.image_size, config.low_res_size)
    found = []
    for three, i in zip(low_res, best, strict=True):
        runs = upscaler(three[i], config.mask_threshold, 0).runs()
        found.append(masks.runs_to_counts(*runs, dispatched.size))
    return found, predicted[np.arange(len(best)), best]


def as_results(item: Item, found: Sequence[Mask], scores: Float[np.ndarray, "n"]) -> list[dict[str, Any]]:
    """Masks of a photo's boxes in COCO's form of results."""
    return [
        {"image_id": item.number, "category_id": int(category), "segmentation": mask, "score": float(value)}
        for category, mask, value in zip(item.boxes.categories, found, scores, strict=True)
    ]


def score(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results are counted together, at the end."""
    return answer


def draw(photo: Picture, found: Iterable[Mask]) -> Picture:
    """Masks in colours over a photo."""
    return overlay.draw_masks(photo, (rle.counts_to_mask(rle.decompress(m["counts"]), photo.shape[:2]) for m in found))

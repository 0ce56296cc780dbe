"""Objects from their own boxes and from clicks: what efficient segmenters are compared by, in pixels of the photo.

Prompts are the annotation's box, and 1, 3 and 5 clicks (`evals.clicks`), each answered in two ways:
  `single`: the decoder's single mask, as EdgeSAM's evaluation (arXiv 2312.06660) takes it.
  `best`: of three masks the one with the highest predicted IoU, as EfficientViT-SAM's (arXiv 2402.05008).
Clicks follow the errors of their own masks, so that there are two chains for each object; as in both of these, masks
are not a prompt for the next. Numbers are mean IoUs of all, small, medium and large objects. `NoC@90` is the mean
number of clicks until the IoU is 0.9, 20 if it never is (RITM).

With a detector's boxes there is AP besides: masks are the best of three, scores the boxes', as in EfficientViT-SAM.
Its page gives for EfficientViT-SAM-XL1 on COCO 0.799 from boxes, 0.598 from one click (both `best`), and with ViTDet's
boxes an AP of 0.478; on LVIS 0.799, 0.566 and 0.444.

Deliberate differences from EfficientViT-SAM: crowd regions are left out, 1% of COCO's, and objects without a pixel; and
an object of exactly 32^2 or 96^2 pixels is of one size, not of two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from ...data.datasets.coco import Coco, open_coco
from ...inference import rle
from ...inference.backends import ENCODE_BATCH
from ...inference.predictor import EmbeddedImage, SamPredictor
from ...inference.prompts import Prompt
from .. import clicks
from ..metrics import instances, mean_by_size
from ..proposals import boxes as proposals
from ..proposals.boxes import Boxes
from ..segmenters import Segmenter
from . import coco
from .protocol import Picture

CLICKS = (1, 3, 5)
CHOICES = {"single": False, "best": True}
"""Which mask is taken -> whether the decoder gives three."""
MOST = 100
"""Boxes of a photo that are taken, as pycocotools counts."""
SHOWN = ("AP", "APs", "APm", "APl")

Precision = Callable[[instances.Truth, instances.Results], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found on a photo."""

    record: dict[str, Any]
    """See `Prompted.segment`."""
    masks: list[coco.Mask]
    """For boxes, single."""


class Prompted:
    """The task; see the module."""

    group = ENCODE_BATCH

    def __init__(self, name: str, data: Coco, boxes: Mapping[int, Boxes] | None, most: int, ap: Precision) -> None:
        """Args: the task's name, photos, boxes by id of the image, their number at most, and what gives AP."""
        self.name, self.data, self.keys, self.boxes = name, data, data.keys, boxes
        self._ap, self.score = ap, score
        self.settings: dict[str, Any] = {"clicks": list(CLICKS), "targets": list(clicks.TARGETS), "most": clicks.MOST}
        if boxes is not None:
            self.settings |= {"boxes": most, "score": "box"}

    def load(self, key: str) -> coco.Item:
        """A photo, its annotations, and a detector's boxes."""
        number = self.data.images[key]["id"]
        boxes = (self.boxes or {}).get(number, proposals.NONE)
        return coco.Item(number, self.data.photo(key), boxes, self.data.annotations(key))

    def segment(self, subject: Segmenter, items: Sequence[coco.Item]) -> list[Answer]:
        """Records hold of each object `areas`, `box`: IoUs by choice, `clicks`: those after each click by choice.

        Besides there are `left_out`, a number of annotations, and if there are boxes `results` in COCO's form.
        """
        predictor = subject.predictor
        embedded = predictor.embed([item.photo for item in items])
        objects = [[one for one in item.truth if _counts(one)] for item in items]
        chains = _click(predictor, embedded, objects)
        answers = []
        for i, (photo, item) in enumerate(zip(embedded, items, strict=True)):
            record: dict[str, Any] = {"areas": [float(one["area"]) for one in objects[i]]}
            record["left_out"] = len(item.truth) - len(objects[i])
            record["clicks"] = {choice: [chain.ious for chain in of[i]] for choice, of in chains.items()}
            corners = np.array([one["bbox"] for one in objects[i]], np.float64).reshape(-1, 4)
            corners[:, 2:] += corners[:, :2]
            found = {c: coco.masks_of_boxes(predictor, photo, corners, three)[0] for c, three in CHOICES.items()}
            record["box"] = {choice: _ious(masks, objects[i]) for choice, masks in found.items()}
            if self.boxes is not None:
                masks, _ = coco.masks_of_boxes(predictor, photo, item.boxes.corners, best_of_three=True)
                record["results"] = coco.as_results(item, masks, item.boxes.scores)
            answers.append(Answer(record, found["single"]))
        return answers

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """Means of IoUs, `box best small` and the like; `NoC@90 best`; and AP, NaN without a detector's boxes."""
        areas = _joined(record["areas"] for record in records.values())
        if not areas:
            raise ValueError("there is no annotated object on these photos")
        numbers: dict[str, float] = {}
        for choice in CHOICES:
            chains = _joined(record["clicks"][choice] for record in records.values())
            values = {f"box {choice}": _joined(record["box"][choice] for record in records.values())}
            for count in CLICKS:
                kind = f"{count} click{'s' * (count > 1)} {choice}"
                values[kind] = [ious[min(count, len(ious)) - 1] for ious in chains]
            for kind, ious in values.items():
                means = mean_by_size(np.array(ious), np.array(areas))
                del means["count"]
                numbers |= {f"{kind} {size}": np.nan if mean is None else mean for size, mean in means.items()}
            for target in clicks.TARGETS:
                needed = [clicks.reached(ious, target) or clicks.MOST for ious in chains]
                numbers[f"NoC@{100 * target:.0f} {choice}"] = float(np.mean(needed))
        numbers |= dict.fromkeys(SHOWN, np.nan)
        left_out = sum(record["left_out"] for record in records.values())
        counts = {"photos": len(records), "objects": len(areas), "annotations left out": left_out}
        if self.boxes is not None:
            results = _joined(record["results"] for record in records.values())
            numbers |= self._ap(self.data.truth(records), results)
            counts["boxes"] = len(results)
        return numbers, counts

    def panels(self, item: coco.Item) -> dict[str, Picture]:
        """The photo, and the objects that count."""
        drawn = coco.draw(item.photo, (one["segmentation"] for one in item.truth if _counts(one)))
        return {"photo": item.photo, "annotations": drawn}

    def panel(self, item: coco.Item, answer: Answer) -> Picture:
        """Single masks for the annotations' boxes."""
        return coco.draw(item.photo, answer.masks)


def open_task(data: Path, proposals: Path | None = None) -> Prompted:
    """As `tasks.open_task`; proposals, if any, are a file of boxes, see `proposals.boxes`."""
    opened = open_coco(data)
    return Prompted("prompted", opened, _boxes(opened, proposals, MOST), MOST, coco_precision)


def _boxes(data: Coco, path: Path | None, most: int) -> dict[int, Boxes] | None:
    return None if path is None else coco.read_boxes(data, path, most)


def coco_precision(truth: instances.Truth, results: instances.Results) -> dict[str, float]:
    """AP with pycocotools' usual counts."""
    found = instances.average_precision(truth, results, instances.SEGINW_DETECTIONS)
    return {name: found[name] for name in SHOWN}


def score(answer: Answer) -> dict[str, Any]:
    """Clicks need IoUs at once, so that they are in the record already."""
    return answer.record


def _counts(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is of an object with pixels, and of no crowd."""
    return not annotation["iscrowd"] and annotation["area"] >= 1 and coco_masks.area(annotation["segmentation"]) > 0


def _ious(found: Sequence[coco.Mask], objects: Sequence[Mapping[str, Any]]) -> list[float]:
    pairs = zip(found, objects, strict=True)
    return [float(coco_masks.iou([mask], [one["segmentation"]], [0])[0, 0]) for mask, one in pairs]


def _joined(lists: Any) -> list[Any]:
    return [value for one in lists for value in one]


def _click(
    predictor: SamPredictor, embedded: Sequence[EmbeddedImage], objects: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, list[list[clicks.Chain]]]:
    """By choice and photo a chain an object; a click of all objects of all photos is dispatched before any is fetched.

    Args:
      predictor: the segmenter.
      embedded: photos.
      objects: annotations of each.
    """
    chains = {
        choice: [
            [clicks.Chain(rle.decompress(one["segmentation"]["counts"]), photo.size) for one in of_photo]
            for photo, of_photo in zip(embedded, objects, strict=True)
        ]
        for choice in CHOICES
    }
    with ThreadPoolExecutor() as pool:  # distances to a boundary are computed beside Python
        while True:
            waiting = []
            for choice, three in CHOICES.items():
                for photo, of_photo in zip(embedded, chains[choice], strict=True):
                    if going := [chain for chain in of_photo if chain.goes_on]:
                        prompts = [Prompt(chain.points, chain.labels) for chain in going]
                        waiting.append((going, predictor.dispatch(photo, prompts, multimask_output=three)))
            if not waiting:
                return chains
            for going, dispatched in waiting:
                list(pool.map(clicks.Chain.answer, going, coco.fetch(predictor, dispatched)[0]))

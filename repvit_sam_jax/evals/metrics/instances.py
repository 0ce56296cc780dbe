"""Average precision of instances, by pycocotools: COCO's protocol, and that of Segmentation in the Wild."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of pycocotools' twelve numbers, with its usual counts of detections."""
COCO_DETECTIONS = (100, 300, 1000)
"""Detections an image that the paper's COCO table counts: AP the first number of them, all else the last."""
SEGINW_DETECTIONS = (1, 10, 100)

Truth = Mapping[str, Any]
"""COCO's form of annotations: `images`, `annotations` and `categories`."""
Results = Sequence[Mapping[str, Any]]
"""COCO's form of results, each with `image_id`, `category_id`, `score` and as `segmentation` a compressed RLE."""


def average_precision(truth: Truth, results: Results, detections: Sequence[int] = COCO_DETECTIONS) -> dict[str, float]:
    """Precision and recall of masks, named as in `STATS`; NaN where there is no object of that size.

    The area of a result is that of its mask. pycocotools would take that of a `bbox` if the result carries one, and
    the numbers by size would differ.

    Args:
      truth: annotations; all their images count, those without a result too.
      results: of the images of `truth`; there may be none.
      detections: three counts of results an image, from few to many.

    Raises:
      ValueError: a result names an image or a category that `truth` lacks, or its mask has another size than its image.
    """
    check_ids(truth, results, "image_id", "images")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for result in results:
        check_size(result["segmentation"], sizes[result["image_id"]], f"a result of image {result['image_id']}")
    measured = [{**result, "area": float(coco_masks.area(result["segmentation"]))} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(indexed(truth, truth["annotations"]), indexed(truth, numbered(measured)), "segm")
        evaluation.params.maxDets = list(detections)
        return summary(evaluation)


def mean_precision(sets: Mapping[str, float]) -> float:
    """The plain mean of the average precision of several data sets. Raises ValueError if one has no number."""
    missing = [name for name, value in sets.items() if not np.isfinite(value)]
    if missing or not sets:
        raise ValueError(f"{', '.join(missing) or 'no data set at all'}: there is no object to find")
    return float(np.mean(list(sets.values())))


def numbered(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results as annotations. Their ids begin at 1, because to pycocotools a match with 0 is none."""
    return [{**result, "id": i, "iscrowd": 0} for i, result in enumerate(results, 1)]


def indexed(truth: Truth, annotations: Iterable[Mapping[str, Any]]) -> COCO:
    """Pycocotools' form of annotations, copied, since it writes into them."""
    index = COCO()
    index.dataset = {**truth, "annotations": [dict(annotation) for annotation in annotations]}
    index.createIndex()
    return index


def summary(evaluation: COCOeval) -> dict[str, float]:
    """Runs an evaluation; the -1 of pycocotools for "none" becomes NaN."""
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(v) if v > -1 else float("nan") for name, v in zip(STATS, evaluation.stats, strict=True)}


def check_ids(truth: Truth, results: Results, key: str, listed: str) -> None:
    """Raises ValueError if results name entries of `truth[listed]`, or categories, that are not there."""
    for name, entries in ((key, listed), ("category_id", "categories")):
        unknown = sorted({result[name] for result in results} - {entry["id"] for entry in truth[entries]})
        if unknown:
            raise ValueError(
                f"{len(unknown)} {name} of the results are not among the {entries} of the annotations, such as "
                f"{unknown[0]}; are these the results of another set?"
            )


def check_size(mask: Mapping[str, Any], size: tuple[int, int], what: str) -> None:
    """Raises ValueError, naming `what`, if an RLE has another size."""
    if tuple(mask["size"]) != size:
        raise ValueError(f"{what} has a mask of {list(mask['size'])} pixels, expected {list(size)}")

"""Average precision on LVIS, whose photos are annotated for some categories only (Gupta et al., CVPR 2019).

The rules are those of lvis-dataset/lvis-api, over pycocotools: on a photo, results of a category count if it has
objects of that category or is known to have none; and if not all its objects of that category are annotated, results
without a match are ignored. Empty masks are left out, of objects and of results, unlike with pycocotools.
"""

from __future__ import annotations

import collections
import contextlib
import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_masks
from pycocotools.cocoeval import COCOeval

from . import instances

MOST = 300
"""Results of a photo, at most."""
SIZES = ("AP", "APs", "APm", "APl")
FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}
"""Of categories: rare, common and frequent."""


def average_precision(truth: instances.Truth, results: instances.Results) -> dict[str, float]:
    """Precision of masks: over all categories, by size of the objects, and by frequency of the category.

    Args:
      truth: LVIS' form of annotations: images have `neg_category_ids` and `not_exhaustive_category_ids`, categories a
        `frequency`.
      results: of the images of `truth`, `MOST` an image at most; there may be none. The area is that of the mask.

    Returns:
      The numbers of `SIZES` and `FREQUENCIES`, NaN where there is no such object.

    Raises:
      ValueError: a result names an image or a category that `truth` lacks, its mask has another size than its image, or
        an image has more than `MOST`.
    """
    instances.check_ids(truth, results, "image_id", "images")
    images = {image["id"]: image for image in truth["images"]}
    for result in results:
        image = images[result["image_id"]]
        instances.check_size(result["segmentation"], (image["height"], image["width"]), f"a result of {image['id']}")
    if max(collections.Counter(result["image_id"] for result in results).values(), default=0) > MOST:
        raise ValueError(f"an image has more than {MOST} results")
    there = [annotation for annotation in truth["annotations"] if annotation["area"] > 0]
    objects, found = _by_category(there), _by_category(results)
    values = np.full((len(truth["categories"]), len(SIZES)), np.nan)
    for row, category in zip(values, truth["categories"], strict=True):
        if mine := objects[category["id"]]:
            row[:] = _of_category(category, images, mine, found[category["id"]])
    frequencies = np.array([category["frequency"] for category in truth["categories"]])
    numbers = {name: _mean(values[:, i]) for i, name in enumerate(SIZES)}
    return numbers | {name: _mean(values[frequencies == letter, 0]) for letter, name in FREQUENCIES.items()}


def _by_category(entries: Collection[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    grouped: dict[int, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for entry in entries:
        grouped[entry["category_id"]].append(entry)
    return grouped


def _of_category(
    category: Mapping[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    objects: list[Mapping[str, Any]],
    results: list[Mapping[str, Any]],
) -> Float[np.ndarray, "4"]:
    """Precision of one category that has objects; other photos than those that count would change nothing."""
    number = category["id"]
    counting = {annotation["image_id"] for annotation in objects}
    counting |= {one["image_id"] for one in results if number in images[one["image_id"]]["neg_category_ids"]}
    truth = {"images": [images[i] for i in sorted(counting)], "categories": [category]}
    known = [
        {**one, "area": float(area)}
        for one in results
        if one["image_id"] in counting and (area := coco_masks.area(one["segmentation"]))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = (instances.indexed(truth, entries) for entries in (objects, instances.numbered(known)))
        evaluation = _Evaluation(*indexed, "segm")
        evaluation.partly = {i for i in counting if number in images[i]["not_exhaustive_category_ids"]}
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, :, 0].mean((0, 1))
    return np.where(precision > -1, precision, np.nan)


def _mean(values: Float[np.ndarray, "n"]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


class _Evaluation(COCOeval):
    """Ignores what has no match on images of `partly`, not all of whose objects are annotated."""

    partly: Collection[int] = ()

    def evaluateImg(self, imgId: int, *given: Any) -> dict[str, Any] | None:  # noqa: N802, N803
        found = super().evaluateImg(imgId, *given)
        if found is not None and imgId in self.partly:
            found["dtIgnore"] |= found["dtMatches"] == 0
        return found

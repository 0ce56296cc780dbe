"""Average recall of tracks, as YouTube-VIS and UVO count it: masks over a whole video are one detection.

Matching and averages are those of pycocotools with videos in place of images, of which youtubevos/cocoapi is a copy;
how much two tracks overlap, and which are small, medium or large, is their own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_masks
from pycocotools.cocoeval import COCOeval

from repvit_sam_jax.evals.metrics import instances

SIZES = (128**2, 256**2)
"""Mean areas, in pixels of a frame, up to which a track is small and medium."""
DETECTIONS = (1, 10, 100)

Track = Mapping[str, Any]
"""`video_id`, `category_id` and, for each frame, a compressed RLE or None in `segmentations`."""


def average_recall(truth: instances.Truth, results: instances.Results) -> dict[str, float]:
    """The numbers of `instances.STATS` for tracks; UVO reports `AR100`. NaN where there is no track of that size.

    Args:
      truth: YouTube-VIS' form: `videos`, `categories`, and as `annotations` tracks with `iscrowd`.
      results: tracks with `score`; there may be none.

    Raises:
      ValueError: a result names a video or a category that `truth` lacks, or a track has another number of frames, or
        masks of another size, than its video.
    """
    instances.check_ids(truth, results, "video_id", "videos")
    of_video = lambda tracks, video: [track for track in tracks if track["video_id"] == video["id"]]
    compared = [
        compare(video, of_video(truth["annotations"], video), of_video(results, video)) for video in truth["videos"]
    ]
    return summarise(compared, [category["id"] for category in truth["categories"]])


Compared = Mapping[str, Any]
"""A video without its masks, as JSON can hold it: see `compare`."""


def compare(video: Mapping[str, Any], truth: Sequence[Track], results: Sequence[Track]) -> Compared:
    """What a video adds to the average recall.

    Args:
      video: `id`, `height`, `width` and `length`.
      truth: its tracks, with `iscrowd`.
      results: tracks that were found, with `score`.

    Returns:
      `truth` and `results`, their tracks with a mean `area` in place of masks, and `ious`, a row a result.

    Raises:
      ValueError: a track has another number of frames, or masks of another size.
    """
    annotations = [_without_masks(track, video, "an annotation") | {"iscrowd": track["iscrowd"]} for track in truth]
    found = [_without_masks(track, video, "a result") | {"score": track["score"]} for track in results]
    return {"truth": annotations, "results": found, "ious": [[track_iou(r, t) for t in truth] for r in results]}


def summarise(videos: Sequence[Compared], categories: Sequence[int]) -> dict[str, float]:
    """The numbers of `instances.STATS`, as `average_recall` gives them.

    Args:
      videos: from `compare`.
      categories: `category_id` of all that count.
    """
    truth = {"images": [{"id": i} for i in range(len(videos))], "categories": [{"id": number} for number in categories]}
    annotations, found = (
        [
            {**track, "image_id": i, "row": row}
            for i, video in enumerate(videos)
            for row, track in enumerate(video[kind])
        ]
        for kind in ("truth", "results")
    )
    with contextlib.redirect_stdout(io.StringIO()):
        both = [instances.indexed(truth, tracks) for tracks in (_with_ids(annotations), instances.numbered(found))]
        evaluation = _Evaluation(*both, "bbox")
        evaluation.overlaps = [np.array(video["ious"]) for video in videos]
        evaluation.params.maxDets = list(DETECTIONS)
        evaluation.params.areaRng = [[0, 1e10], [0, SIZES[0]], list(SIZES), [SIZES[1], 1e10]]
        return instances.summary(evaluation)


def _with_ids(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ids begin at 1, because to pycocotools a match with 0 is none."""
    return [{**annotation, "id": i} for i, annotation in enumerate(annotations, 1)]


def track_iou(a: Track, b: Track) -> float:
    """Intersections over unions, both summed over all frames; a frame without a mask is an empty one."""
    intersection = union = 0.0
    for pair in zip(a["segmentations"], b["segmentations"], strict=True):
        masks = [mask for mask in pair if mask]
        both = float(coco_masks.area(coco_masks.merge(masks, intersect=True))) if len(masks) == 2 else 0.0
        intersection += both
        union += sum(float(coco_masks.area(mask)) for mask in masks) - both
    return intersection / union if union else 0.0


def _without_masks(track: Track, video: Mapping[str, Any], what: str) -> dict[str, Any]:
    masks, what = track["segmentations"], f"{what} of video {video['id']}"
    if len(masks) != video["length"]:
        raise ValueError(f"{what} has {len(masks)} frames, expected {video['length']}")
    for mask in filter(None, masks):
        instances.check_size(mask, (video["height"], video["width"]), what)
    areas = [area for area in (float(coco_masks.area(mask)) for mask in masks if mask) if area]
    return {"category_id": track["category_id"], "area": float(np.mean(areas)) if areas else 0.0}


class _Evaluation(COCOeval):
    """Takes overlaps as they were computed: crowds are any other track."""

    overlaps: Sequence[Float[np.ndarray, "d g"]]

    def computeIoU(self, imgId: int, catId: int) -> Float[np.ndarray, "d g"] | list[Any]:  # noqa: N802, N803
        truth, tracks = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth or not tracks:
            return np.zeros((len(tracks), len(truth)))
        order = np.argsort([-track["score"] for track in tracks], kind="stable")[: self.params.maxDets[-1]]
        rows, columns = [tracks[i]["row"] for i in order], [track["row"] for track in truth]
        return self.overlaps[imgId][np.ix_(rows, columns)]

"""Average recall of tracks, as YouTube-VIS and UVO count it: masks over a whole video are one detection.

Matching and averages are those of pycocotools with videos in place of images, of which youtubevos/cocoapi is a copy;
how much two tracks overlap, and which are small, medium or large, is their own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
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
      truth: YouTube-VIS' form: `videos`, `categories`, and as `annotations` tracks with `id` and `iscrowd`.
      results: tracks with `score`; there may be none.

    Raises:
      ValueError: a result names a video or a category that `truth` lacks, or a track has another number of frames, or
        masks of another size, than its video.
    """
    instances.check_ids(truth, results, "video_id", "videos")
    videos = {video["id"]: video for video in truth["videos"]}
    as_images = {"images": truth["videos"], "categories": truth["categories"]}
    annotations = [_as_instance(track, videos, "an annotation") for track in truth["annotations"]]
    tracks = instances.numbered(_as_instance(track, videos, "a result") for track in results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(*(instances.indexed(as_images, of) for of in (annotations, tracks)), "bbox")
        evaluation.params.maxDets = list(DETECTIONS)
        evaluation.params.areaRng = [[0, 1e10], [0, SIZES[0]], list(SIZES), [SIZES[1], 1e10]]
        return instances.summary(evaluation)


def track_iou(a: Track, b: Track) -> float:
    """Intersections over unions, both summed over all frames; a frame without a mask is an empty one."""
    intersection = union = 0.0
    for pair in zip(a["segmentations"], b["segmentations"], strict=True):
        masks = [mask for mask in pair if mask]
        both = float(coco_masks.area(coco_masks.merge(masks, intersect=True))) if len(masks) == 2 else 0.0
        intersection += both
        union += sum(float(coco_masks.area(mask)) for mask in masks) - both
    return intersection / union if union else 0.0


def _as_instance(track: Track, videos: Mapping[Any, Mapping[str, Any]], what: str) -> dict[str, Any]:
    number, masks = track["video_id"], track["segmentations"]
    video, what = videos[number], f"{what} of video {number}"
    if len(masks) != video["length"]:
        raise ValueError(f"{what} has {len(masks)} frames, expected {video['length']}")
    for mask in filter(None, masks):
        instances.check_size(mask, (video["height"], video["width"]), what)
    areas = [area for area in (float(coco_masks.area(mask)) for mask in masks if mask) if area]
    return {**track, "image_id": number, "area": float(np.mean(areas)) if areas else 0.0}


class _Evaluation(COCOeval):
    """Counts crowds as any other track when it comes to overlap."""

    def computeIoU(self, imgId: int, catId: int) -> Float[np.ndarray, "d g"] | list[Any]:  # noqa: N802, N803
        truth, tracks = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth and not tracks:
            return []
        order = np.argsort([-track["score"] for track in tracks], kind="stable")[: self.params.maxDets[-1]]
        return np.array([track_iou(tracks[i], other) for i in order for other in truth]).reshape(len(order), len(truth))

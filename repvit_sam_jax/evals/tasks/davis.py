"""Video object segmentation on DAVIS-2017 from tracked points, as SAM-PT does it (arXiv 2307.01197).

`tasks.sam_pt` says how the objects of a frame are found, with the settings of SAM-PT's configuration for DAVIS
(SysCV/sam-pt, `configs/model/sam_pt.yaml`): the points on the other objects are points beside an object, and a mask is
refined 12 times. A pixel belongs to the object with the largest logit, and to the background if none is above 0. The
first frame is the truth. Scores are those of davisvideochallenge/davis2017-evaluation, semi-supervised, which
`metrics.video` has. SAM-PT tracks 16 points on each object and one beside it, with CoTracker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ... import transforms
from ...data.datasets import layout
from ...data.datasets.davis import Davis, read_labels
from ...inference import masks
from ...inference.overlay import draw_masks
from ..metrics import video
from ..proposals.tracks import Expected, Tracks, TracksFile
from ..segmenters import Segmenter
from . import sam_pt
from .protocol import Picture

WAY = sam_pt.Way(others=True, refinements=12)


@dataclasses.dataclass(frozen=True)
class Item:
    """A sequence; its photos are read when they are segmented, its labels when they are scored."""

    name: str
    frames: list[Path]
    labels: list[Path]
    tracks: Tracks


@dataclasses.dataclass(frozen=True)
class Answer:
    """Numbers of objects, and the files of the true ones."""

    name: str
    labels: UInt8[np.ndarray, "t h w"]
    truth: list[Path]


class Video:
    """The task; see the module."""

    name, group = "davis", 1

    def __init__(self, data: Davis, proposals: Path | None) -> None:
        """Raises ValueError if a sequence has fewer than three frames, or the tracks are none of these sequences."""
        self.data, self.keys = data, data.names
        self.settings: dict[str, Any] = dataclasses.asdict(WAY)
        self.settings |= {"iou_threshold": sam_pt.IOU_THRESHOLD, "border": sam_pt.BORDER}
        expected = {}
        for name in data.names:
            paths = data.labels(name)
            if len(paths) < 3:
                raise ValueError(
                    f"{paths[0].parent} has {len(paths)} frames; the first and the last one do not count, so that "
                    "there have to be three"
                )
            first = read_labels(paths[0])
            if not first.any():
                raise ValueError(f"{paths[0]} has no object")
            expected[name] = Expected(len(paths), first.shape, len(_objects(first)))
        self._tracks = TracksFile(proposals, expected)
        self.score = score

    def load(self, key: str) -> Item:
        """A sequence. Raises ValueError if pictures have other sizes than the first one's labels."""
        item = Item(key, self.data.frames(key), self.data.labels(key), self._tracks.read(key))
        layout.check_sizes([*item.frames, *item.labels], item.tracks.size)
        return item

    def segment(self, subject: Segmenter, items: Sequence[Item]) -> list[Answer]:
        """Numbers of objects in all frames, those of the first one being given."""
        return [Answer(item.name, _labels(subject, item), item.labels) for item in items]

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """J and F: their mean, recall and decay over all objects."""
        numbers = video.summarise(records.values())
        return numbers, {"sequences": len(records), "objects": sum(len(record["J"]) for record in records.values())}

    def panels(self, item: Item) -> dict[str, Picture]:
        """The frame in the middle, and its objects."""
        photo = transforms.load_image(item.frames[_middle(item)])
        return {"photo": photo, "truth": _drawn(photo, read_labels(item.labels[_middle(item)]))}

    def panel(self, item: Item, answer: Answer) -> Picture:
        """The objects that were found in it."""
        return _drawn(transforms.load_image(item.frames[_middle(item)]), answer.labels[_middle(item)])


def open_task(data: Path, proposals: Path | None = None) -> Video:
    """As `tasks.open_task`; the proposals are tracks of the objects of the first frame, by rising label."""
    return Video(Davis(data), proposals)


def _objects(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "k"]:
    """The labels of the first frame's objects, rising: numbers of the tracks."""
    return np.unique(labels[labels > 0])


def _labels(subject: Segmenter, item: Item) -> UInt8[np.ndarray, "t h w"]:
    predictor, size = subject.predictor, item.tracks.size
    labels = np.zeros((len(item.frames), *size), np.uint8)
    labels[0] = read_labels(item.labels[0])
    numbers = _objects(labels[0])
    upscaler = masks.Upscaler(size, predictor.config.image_size, predictor.config.low_res_size)
    for frame in sam_pt.frames(predictor, item.frames, item.tracks, WAY, first=1):
        best = np.full(size, predictor.config.mask_threshold, np.float32)
        for of in frame.objects:
            if of.is_kept:
                assert of.low_res is not None
                logits = upscaler.logits(of.low_res)
                labels[frame.number][logits > best] = numbers[of.number]
                np.maximum(best, logits, out=best)
    return labels


def score(answer: Answer) -> video.Statistics:
    """`metrics.video.objects`. Raises ValueError, which names the sequence or the file, if labels can't be scored."""
    truth = np.stack([read_labels(path) for path in answer.truth])
    try:
        return video.objects(answer.labels, truth)
    except ValueError as error:
        raise ValueError(f"sequence {answer.name}: {error}") from error


def _middle(item: Item) -> int:
    return len(item.frames) // 2


def _drawn(photo: Picture, labels: UInt8[np.ndarray, "h w"]) -> Picture:
    return draw_masks(photo, [labels == number for number in range(1, labels.max() + 1)])

"""Video instance segmentation on UVO v1.0 from tracked points, as SAM-PT does it (arXiv 2307.01197).

`tasks.sam_pt` says how the objects of a frame are found, with the settings of SAM-PT's command for UVO (SysCV/sam-pt,
`docs/04-running-experiments.md`): an object's own points alone, and no refinement. All frames are segmented, the first
one too, at a shorter side of `SHORT` pixels, from which masks are scaled to the video's size. The masks of an object in
all frames are one detection of the only class. Its score is the mean predicted IoU over the frames; if it has no point
in one of them, SAM-PT's mean is minus infinity, here `LAST`, so that it ranks behind all others, in the order of the
tracks. `TRACKS` count, the first ones of a video. Scores are those of YTVOSeval: `metrics.tracks`.

SAM-PT tracks 16 points on each object and one beside it, for masks that SAM's mask generator finds in the first frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from ... import transforms
from ...data.datasets import layout
from ...data.datasets.uvo import CATEGORY, Uvo
from ...inference import masks, rle
from ...inference.overlay import draw_masks
from ..metrics import tracks as metric
from ..proposals.tracks import Expected, Tracks, TracksFile
from ..segmenters import Segmenter
from . import sam_pt
from .protocol import Picture

WAY = sam_pt.Way(others=False, refinements=0)
TRACKS = 100
SHORT, LONG = 360, 1333
"""Pixels of a frame's shorter side, and at most of its longer one (`MIN_SIZE_TEST`, `MAX_SIZE_TEST`)."""
LAST = -1e9


@dataclasses.dataclass(frozen=True)
class Item:
    """A video; its frames are read when they are segmented."""

    video: Mapping[str, Any]
    frames: list[Path]
    truth: list[dict[str, Any]]
    tracks: Tracks


@dataclasses.dataclass(frozen=True)
class Answer:
    """Tracks that were found, with `score`, beside the true ones; masks are RLE."""

    video: Mapping[str, Any]
    found: list[dict[str, Any]]
    truth: list[dict[str, Any]]


class Instances:
    """The task; see the module."""

    name, group = "uvo", 1

    def __init__(self, data: Uvo, proposals: Path | None) -> None:
        """Raises ValueError if the tracks are none of these videos."""
        self.data, self.keys = data, list(data.videos)
        self.settings: dict[str, Any] = dataclasses.asdict(WAY)
        self.settings |= {"iou_threshold": sam_pt.IOU_THRESHOLD, "border": sam_pt.BORDER}
        self.settings |= {"tracks": TRACKS, "short_side": SHORT, "long_side": LONG}
        videos = {name: Expected(video["length"], data.size(name)) for name, video in data.videos.items()}
        self._tracks = TracksFile(proposals, videos)
        self.score = score

    def load(self, key: str) -> Item:
        """A video. Raises ValueError if a frame is missing, or has another size than the annotations say."""
        given, frames = self._tracks.read(key), self.data.frames(key)
        layout.check_sizes(frames, self.data.size(key))
        first = Tracks(given.points[:, :TRACKS], given.visible[:, :TRACKS], given.labels[:TRACKS], given.size)
        return Item(self.data.videos[key], frames, self.data.tracks(key), first)

    def segment(self, subject: Segmenter, items: Sequence[Item]) -> list[Answer]:
        """Masks of the tracks' objects in all frames."""
        return [Answer(item.video, _find(subject, item), item.truth) for item in items]

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """Average precision and recall of tracks."""
        videos = list(records.values())
        total = lambda kind: sum(len(video[kind]) for video in videos)
        counts = {"videos": len(videos), "objects": total("truth"), "tracks": total("results")}
        return metric.summarise(videos, [CATEGORY["id"]]), counts

    def panels(self, item: Item) -> dict[str, Picture]:
        """The frame in the middle, and its objects."""
        photo = transforms.load_image(item.frames[_middle(item)])
        return {"photo": photo, "truth": draw_masks(photo, _decoded(item.truth, _middle(item)))}

    def panel(self, item: Item, answer: Answer) -> Picture:
        """The objects that were found in it."""
        photo = transforms.load_image(item.frames[_middle(item)])
        return draw_masks(photo, _decoded(answer.found, _middle(item)))


def open_task(data: Path, proposals: Path | None = None) -> Instances:
    """As `tasks.open_task`; the proposals are tracks of the masks that a generator found in the first frames."""
    return Instances(Uvo(data), proposals)


def _find(subject: Segmenter, item: Item) -> list[dict[str, Any]]:
    predictor, size, count = subject.predictor, item.tracks.size, len(item.tracks.labels)
    scores = np.full((len(item.frames), count), -np.inf)
    found: list[list[Any]] = [[None] * len(item.frames) for _ in range(count)]
    config, upscaler = predictor.config, None
    for frame in sam_pt.frames(predictor, item.frames, item.tracks, WAY, load=load_scaled):
        # All frames have one size.
        upscaler = upscaler or masks.Upscaler(frame.photo.size, config.image_size, config.low_res_size, size)
        for of in frame.objects:
            scores[frame.number, of.number] = of.predicted_iou
            if of.is_kept:
                assert of.low_res is not None
                x, y = upscaler(of.low_res, config.mask_threshold, 0).runs()
                if len(x):
                    counts = masks.runs_to_counts(x, y, size)
                    found[of.number][frame.number] = rle.counts_to_coco(counts, size)
    common = {"video_id": item.video["id"], "category_id": CATEGORY["id"]}
    means = [float(mean) if np.isfinite(mean) else LAST for mean in scores.mean(axis=0)]
    return [{**common, "score": mean, "segmentations": of} for mean, of in zip(means, found, strict=True)]


def load_scaled(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A frame at the size that detectron2's `ResizeShortestEdge` gives it, by Pillow's bilinear filter."""
    photo = transforms.load_image(path)
    return np.array(Image.fromarray(photo).resize(scaled_size(photo.shape[:2])[::-1], Image.Resampling.BILINEAR))


def scaled_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) with a shorter side of `SHORT` pixels, or if that makes it longer, a longer one of `LONG`."""
    scale = SHORT / min(size)
    scale *= min(1, LONG / (scale * max(size)))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def score(answer: Answer) -> metric.Compared:
    """`metrics.tracks.compare`."""
    return metric.compare(answer.video, answer.truth, answer.found)


def _middle(item: Item) -> int:
    return len(item.frames) // 2


def _decoded(tracks: Sequence[Mapping[str, Any]], frame: int) -> list[Bool[np.ndarray, "h w"]]:
    given = [track["segmentations"][frame] for track in tracks]
    return [rle.counts_to_mask(rle.decompress(mask["counts"]), mask["size"]) for mask in given if mask]

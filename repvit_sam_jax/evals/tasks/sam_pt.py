"""Objects of a frame from the points that a tracker followed to it, as SAM-PT asks for them (arXiv 2307.01197).

The procedure is that of SysCV/sam-pt, `SamPt._apply_sam_to_trajectories`, for each frame and each object on its own:

1. Its points count where they are visible and at least `BORDER` of the frame away from the frame's edges. For DAVIS,
   the points on the other objects that count follow as points beside this one.
2. If no point is left, the object is not in the frame.
3. If objects have points beside them: one mask from the points on the object, then one from all points, with the
   first one's low-res logits. Otherwise: one mask from all points.
4. Refinements: one mask from all points, the box of the last mask, and its low-res logits; until the last mask has
   fewer than two pixels. The box's corners are the first and the last pixels, in the frame of the model.
5. A mask whose predicted IoU is below `IOU_THRESHOLD` is empty.

Each prompt gives one mask, the one that SAM has for prompts of several points.

Deliberate differences, none of which should move a number that is published with one decimal. An object with points
beside it only is asked for with SAM's "not a point" twice, where SAM-PT asks with one. Upscaled logits differ by
float32 rounding. Frames keep the values of their pixels, of which SAM-PT lowers some by one on their way through
[0, 1].
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from ... import transforms
from ...inference import masks
from ...inference.backends import ENCODE_BATCH
from ...inference.photos import read_ahead
from ...inference.predictor import EmbeddedImage, SamPredictor
from ...inference.prompts import Prompt
from ..proposals.tracks import Tracks

BORDER = 0.01
"""Share of the frame's width, or height, within which of an edge a point does not count."""
IOU_THRESHOLD = 0.7


@dataclasses.dataclass(frozen=True)
class Way:
    """How a benchmark's configuration goes about it."""

    others: bool
    """Whether points on other objects are points beside this one."""
    refinements: int


@dataclasses.dataclass(eq=False)
class Object:
    """An object in a frame, and its last mask."""

    number: int
    """Among the tracks."""
    points: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, "n"]
    low_res: Float[np.ndarray, "s s"] | None = None
    """Logits."""
    predicted_iou: float = 0.0

    @property
    def is_kept(self) -> bool:
        """Whether the mask counts; otherwise the object is asked for, and not found."""
        return self.predicted_iou >= IOU_THRESHOLD


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame, and the objects that have a point in it."""

    number: int
    photo: EmbeddedImage
    objects: list[Object]


def frames(
    predictor: SamPredictor,
    paths: Sequence[Path],
    tracks: Tracks,
    way: Way,
    first: int = 0,
    load: Callable[[Path], UInt8[np.ndarray, "h w 3"]] = transforms.load_image,
) -> Iterator[Frame]:
    """Frames of a video in order, with the masks of their objects.

    Memory holds `ENCODE_BATCH` frames that are segmented at once, and those that are read ahead.

    Args:
      predictor: whichever image it has stays set.
      paths: the video's frames, all of them.
      tracks: of as many frames.
      way: the benchmark's.
      first: number of the frame to begin with.
      load: reads a frame, which may be scaled; the tracks are scaled with it.
    """
    with contextlib.closing(read_ahead(list(enumerate(paths))[first:], lambda given: load(given[1]))) as reading:
        # Each is waited for here: when the last one is taken, what has not begun is cancelled.
        read = ((number, photo.result()) for (number, _), photo in reading)
        while batch := list(itertools.islice(read, ENCODE_BATCH)):
            found = [
                Frame(number, embedded, visible_objects(tracks, number, embedded.size, way.others))
                for (number, _), embedded in zip(batch, predictor.embed([photo for _, photo in batch]), strict=True)
            ]
            segment(predictor, found, way.refinements, not tracks.labels.all())
            yield from found


def visible_objects(tracks: Tracks, frame: int, size: tuple[int, int], others: bool) -> list[Object]:
    """The objects that have a point in a frame, with their points in pixels of the frame at `size` (height, width)."""
    places = tracks.points[frame] / tracks.size[::-1]  # shares of the frame
    with np.errstate(invalid="ignore"):  # points that are not visible may be anything
        counts = tracks.visible[frame] & ((places >= BORDER) & (places <= 1 - BORDER)).all(-1)
    positive = counts & (tracks.labels == 1)
    objects = []
    for number in range(len(counts)):
        points, labels = places[number][counts[number]], tracks.labels[number][counts[number]]
        if others:
            of_others = positive.copy()
            of_others[number] = False
            beside = places[of_others]  # object by object
            points = np.concatenate([points, beside])
            labels = np.concatenate([labels, np.zeros(len(beside), labels.dtype)])
        if len(points):
            objects.append(Object(number, points * size[::-1], labels))
    return objects


def segment(predictor: SamPredictor, found: Sequence[Frame], refinements: int, beside: bool) -> None:
    """Give all objects of some frames their masks; `beside`: whether there are points beside objects."""
    left: list[tuple[Frame, list[Object]]] = [(frame, frame.objects) for frame in found]
    if beside:
        _ask(predictor, left, _on_the_object)
    _ask(predictor, left, lambda of: Prompt(of.points, of.labels, mask=of.low_res))
    for _ in range(refinements):
        boxes = {
            of: box for frame, objects in left for of in objects if (box := _box(predictor, frame, of)) is not None
        }
        left = [(frame, [of for of in objects if of in boxes]) for frame, objects in left]
        _ask(predictor, left, functools.partial(_refined, boxes))


def _refined(boxes: Mapping[Object, Float[np.ndarray, "4"]], of: Object) -> Prompt:
    return Prompt(of.points, of.labels, boxes[of], of.low_res)


def _on_the_object(of: Object) -> Prompt:
    if not of.labels.any():
        return Prompt([[0, 0]], [-1])
    return Prompt(of.points[of.labels == 1], of.labels[of.labels == 1])


def _ask(
    predictor: SamPredictor, given: Sequence[tuple[Frame, Sequence[Object]]], prompt: Callable[[Object], Prompt]
) -> None:
    """One mask for each object; all frames are dispatched before anything is fetched."""
    pending = [
        (objects, predictor.dispatch(frame.photo, [prompt(of) for of in objects], multimask_output=False))
        for frame, objects in given
        if objects
    ]
    for objects, dispatched in pending:
        _, ious, low_res = predictor.fetch(dispatched, return_low_res_only=True)
        for of, (iou,), (logits,) in zip(objects, ious, low_res, strict=True):
            of.predicted_iou, of.low_res = float(iou), logits


def _box(predictor: SamPredictor, frame: Frame, of: Object) -> Float[np.ndarray, "4"] | None:
    """The mask's box in pixels of the frame, from the pixels of the model's; None if it has fewer than two of them."""
    assert of.low_res is not None
    config = predictor.config
    resized = transforms.resized_shape(*frame.photo.size, config.image_size)
    mask = _upscaler(resized, config.image_size, config.low_res_size)(of.low_res, config.mask_threshold, 0)
    scale = np.tile(np.divide(frame.photo.size, resized)[::-1], 2)
    return None if mask.above < 2 else np.array(masks.runs_to_box(*mask.runs())) * scale


@functools.lru_cache(maxsize=2)
def _upscaler(size: tuple[int, int], image_size: int, low_res_size: int) -> masks.Upscaler:
    """It takes as long as some masks, and frames of a video have one size."""
    return masks.Upscaler(size, image_size, low_res_size)

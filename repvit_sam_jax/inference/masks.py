"""Masks as sets of pixels: upscaled, thresholded, as boxes and runs, filtered; points and crops of a photo.

The procedures are those of facebookresearch/segment-anything (`utils/amg.py`) and of torchvision's `nms`. NumPy on the
host: photos vary in size, and a compiled program would serve one size.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from .. import transforms
from .rle import Counts
from .rle import counts_to_coco as counts_to_coco  # and what follows: where version 0.1 had them
from .rle import counts_to_mask as counts_to_mask
from .rle import counts_to_rle as counts_to_rle

CROP_EDGE_TOLERANCE = 20
"""Pixels within which a box counts as touching an edge of its crop or of the photo."""

_STRIP = 32
"""Columns, or rows, that are upscaled at once: they stay in the cache, and BLAS starts no threads for them."""


def point_grid(columns: int, rows: int | None = None) -> Float[np.ndarray, "n 2"]:
    """Centres (x, y) of equal cells of the unit square, row by row; as many rows as columns if not given."""
    x, y = (np.linspace(1 / (2 * n), 1 - 1 / (2 * n), n) for n in (columns, rows or columns))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def crop_boxes(
    size: tuple[int, int], num_layers: int, overlap_ratio: float
) -> list[tuple[tuple[int, int, int, int], int]]:
    """The whole photo as layer 0, then layers of 2 x 2, 4 x 4, ... overlapping crops, column by column.

    Args:
      size: (height, width) of the photo in pixels.
      num_layers: layers of crops; 0 leaves the photo alone.
      overlap_ratio: overlap in the first layer of crops, as a fraction of the photo's shorter side; it halves from
        layer to layer.

    Returns:
      (x1, y1, x2, y2) in pixels, the last ones excluded, and the layer.

    Raises:
      ValueError: a crop would be empty.
    """
    height, width = size
    crops: list[tuple[tuple[int, int, int, int], int]] = [((0, 0, width, height), 0)]
    for layer in range(1, num_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / count))
        crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        if (crop_width - overlap) * (count - 1) >= width or (crop_height - overlap) * (count - 1) >= height:
            raise ValueError(
                f"the image of width {width}, height {height} is too small for {count} x {count} crops; "
                f"set crop_n_layers to less than {layer}"
            )
        for i, j in itertools.product(range(count), range(count)):
            x, y = (crop_width - overlap) * i, (crop_height - overlap) * j
            crops.append(((x, y, min(x + crop_width, width), min(y + crop_height, height)), layer))
    return crops


@dataclasses.dataclass(frozen=True)
class UpscaledMask:
    """A mask at its crop's size, and what its stability score is made of.

    `columns` is the part that can hold pixels of the mask, transposed, each column followed by an outside pixel, so
    that no run reaches into the next one; (left, top) is where the part lies in the crop.
    """

    above: int
    """Pixels over the threshold plus the offset."""
    below: int
    """Pixels over the threshold minus the offset."""
    columns: Bool[np.ndarray, "w h1"]
    left: int
    top: int

    @property
    def stability_score(self) -> np.float32:
        """Share of the larger mask that the smaller one fills; NaN if both are empty."""
        with np.errstate(invalid="ignore"):
            return np.float32(self.above) / np.float32(self.below)  # float32 counts, as in SAM

    def runs(self) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """(x, y) in the crop where runs start (even positions) and where they end, the ends excluded."""
        flat = self.columns.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[:1].any():
            changes = np.concatenate([[0], changes])
        x, y = np.divmod(changes, self.columns.shape[1])
        return x + self.left, y + self.top


class Upscaler:
    """Mask logits from the decoder's resolution to a crop's: `transforms.postprocess_masks`, thresholded.

    Both bilinear resizes and the cropping between them are linear and act on rows and columns separately, so together
    they are one narrow band matrix an axis. The matrices are composed in float64 and applied in strips; masks differ
    from those of `postprocess_masks` by float32 rounding. Memory is a boolean mask and a strip of logits.
    """

    def __init__(
        self, size: tuple[int, int], image_size: int, low_res_size: int, larger: tuple[int, int] | None = None
    ) -> None:
        """From low-res logits to those of a crop, in pixels.

        Args:
          size: (height, width) of the crop.
          image_size: S.
          low_res_size: S/4.
          larger: size that the crop's logits are resized to, bilinearly again, if it was made of a larger photo.
        """
        resized = transforms.resized_shape(*size, image_size)
        self._rows, self._columns = (
            _compose(low_res_size, (low_res_size, image_size), (part, whole), (whole, last))
            for part, whole, last in zip(resized, size, larger or size, strict=True)
        )

    def __call__(self, logits: Float[np.ndarray, "s s"], threshold: float, offset: float) -> UpscaledMask:
        """The mask of one low-res logits array; what lies outside its part is below `threshold - offset`."""
        # Bilinear weights are positive: where no neighbour exceeds the lowest threshold, no pixel does.
        candidates = logits > threshold - offset
        rows = _seeing(self._rows, np.flatnonzero(candidates.any(axis=1)))
        columns = _seeing(self._columns, np.flatnonzero(candidates.any(axis=0)))
        if not rows or not columns:
            return UpscaledMask(0, 0, np.zeros((0, 1), bool), 0, 0)
        top, bottom, left, right = rows[0].start, rows[-1].stop, columns[0].start, columns[-1].stop
        first, last = columns[0].low, columns[-1].high
        tall = np.empty((last - first, bottom - top), np.float32)
        for strip in rows:
            tall[:, strip.start - top : strip.stop - top] = (
                logits[strip.low : strip.high, first:last].T @ strip.weights.T
            )
        mask = np.zeros((right - left, bottom - top + 1), bool)
        above = below = 0
        for strip in columns:
            pixels = strip.weights @ tall[strip.low - first : strip.high - first]
            above += int(np.count_nonzero(pixels > threshold + offset))
            below += int(np.count_nonzero(pixels > threshold - offset))
            np.greater(pixels, threshold, out=mask[strip.start - left : strip.stop - left, :-1])
        return UpscaledMask(above, below, mask, left, top)

    def logits(self, low_res: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "h w"]:
        """All logits of a mask at the crop's size."""
        tall = np.concatenate([strip.weights @ low_res[strip.low : strip.high] for strip in self._rows])
        wide = [tall[:, strip.low : strip.high] @ strip.weights.T for strip in self._columns]
        return np.concatenate(wide, axis=1)


@dataclasses.dataclass(frozen=True)
class _Strip:
    """Pixels start:stop are `weights` [stop - start, high - low] times low-res values low:high."""

    start: int
    stop: int
    low: int
    high: int
    weights: Float[np.ndarray, "n k"]


def _compose(low_res_size: int, *steps: tuple[int, int]) -> tuple[_Strip, ...]:
    """From `low_res_size` values through resizes, each from so many of the first values to another number."""
    matrix = np.eye(low_res_size)
    for size, new_size in steps:
        low, high, weight = transforms._bilinear_taps(size, new_size)
        upper = weight[:, None].astype(np.float64)
        matrix = matrix[low] * (1 - upper) + matrix[high] * upper
    strips = []
    for start in range(0, len(matrix), _STRIP):
        rows = matrix[start : start + _STRIP]
        used = np.flatnonzero(rows.any(0))
        first, last = int(used[0]), int(used[-1]) + 1
        strips.append(_Strip(start, start + len(rows), first, last, rows[:, first:last].astype(np.float32)))
    return tuple(strips)


def _seeing(strips: tuple[_Strip, ...], positions: Int[np.ndarray, "n"]) -> tuple[_Strip, ...]:
    """The strips from the first to the last one that a low-res value at these positions has a part in."""
    if not len(positions):
        return ()
    return tuple(strip for strip in strips if strip.low <= positions[-1] and strip.high > positions[0])


def runs_to_box(x: Int[np.ndarray, "n"], y: Int[np.ndarray, "n"]) -> list[int]:
    """XYXY around `UpscaledMask.runs`, the last pixels included; zeros for an empty mask."""
    return [int(x[0]), int(y[::2].min()), int(x[-1]), int(y[1::2].max()) - 1] if len(x) else [0, 0, 0, 0]


def runs_to_counts(x: Int[np.ndarray, "n"], y: Int[np.ndarray, "n"], size: tuple[int, int]) -> Counts:
    """`UpscaledMask.runs`, moved to the photo's frame of `size` (height, width), as lengths of runs."""
    bounds = x * size[0] + y
    # Where one run's end is the next one's start, they go on from the bottom of a column to the top of the next.
    joined = np.flatnonzero(bounds[1:-1:2] == bounds[2::2])
    bounds = np.delete(bounds, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(bounds, prepend=0, append=size[0] * size[1])
    return (counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts).astype(np.int32)


def near_crop_edge(
    boxes: Int[np.ndarray, "*n 4"], crop_box: Sequence[int], size: tuple[int, int]
) -> Bool[np.ndarray, "*n"]:
    """Whether boxes, in the photo's frame, touch an edge of their crop that is none of the photo of (height, width)."""
    at_crop = np.abs(boxes - np.asarray(crop_box)) <= CROP_EDGE_TOLERANCE
    at_photo = np.abs(boxes - np.array([0, 0, size[1], size[0]])) <= CROP_EDGE_TOLERANCE
    return (at_crop & ~at_photo).any(-1)


def nms(
    boxes: Float[np.ndarray, "n 4"] | Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], iou_threshold: float
) -> Int[np.ndarray, "k"]:
    """Numbers of the boxes, XYXY, that overlap no better one by more than `iou_threshold`, best first.

    torchvision's CPU `nms`: areas are those of points (x2 - x1), sums are float32, the IoU is compared in float64, ties
    keep their order, and boxes without an area overlap nothing.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].astype(np.float32).T
    areas = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), bool)
    kept = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(order[i])
        rest = slice(i + 1, None)
        width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
        height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):
            iou = overlap / (areas[i] + areas[rest] - overlap)
        alive[rest] &= ~(iou.astype(np.float64) > iou_threshold)
    return np.array(kept, np.int64)


def box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int] | None:
    """XYXY of a mask's first and last pixels; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return None if not len(rows) else (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))


def remove_small_regions(mask: Bool[np.ndarray, "h w"], min_area: int) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Fill holes, then drop islands, of less than `min_area` pixels, and say whether there were any.

    Regions are 8-connected, holes too. If all islands are small, the largest stays, of several the first in row order.
    """
    box = box_of(mask)
    if box is None:
        return mask, False
    # A region that reaches further from the mask has `min_area` pixels within this distance, and is no small hole.
    x0, y0, x1, y1 = box
    near = tuple(slice(max(0, low - min_area), high + 1 + min_area) for low, high in ((y0, y1), (x0, x1)))
    part = mask[near]
    holes, small_holes, _ = _regions(~part, min_area)
    filled = part | small_holes[holes]
    islands, small_islands, largest = _regions(filled, min_area)
    kept = ~small_islands
    kept[0] = False
    if not kept.any():
        kept[largest] = True
    result = mask.copy()
    result[near] = kept[islands]
    return result, bool(small_holes.any() or small_islands.any())


def _regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers of the 8-connected regions, 0 outside; for each number whether the region is small; the largest one."""
    from scipy import ndimage  # importing it takes as long as all of this library

    numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    small = sizes < min_area
    small[0] = False
    return numbers, small, 1 + int(np.argmax(sizes[1:])) if count else 0

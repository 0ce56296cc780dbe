"""Masks of annotations: COCO's forms to lengths of runs, and from there to boxes and the decoder's frame, exactly.

No bitmap of a photo is ever made. pycocotools turns polygons into runs; compressed runs are read here, because it keeps
their lengths to itself, and answers runs that end too early with whatever was in the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

from ..inference.masks import Counts
from ..transforms import resized_shape


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> Counts:
    """Lengths of runs of a mask in any of COCO's forms.

    Args:
      segmentation: polygons, a list of [x, y, x, y, ...] in pixels, or runs, {"size": [height, width], "counts": a
        string (compressed) or a list of lengths}.
      size: (height, width) of the photo.

    Raises:
      ValueError: it is none of them, or a mask of another size.
    """
    if isinstance(segmentation, list):
        if not segmentation or any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in segmentation):
            raise ValueError("a polygon is [x, y, x, y, ...] with three points or more")
        for polygon in segmentation:  # pycocotools crashes the process on what is not finite, or far away
            points = np.asarray(polygon, np.float64)
            if points.ndim != 1 or not (np.abs(points) <= 10 * max(size)).all():
                raise ValueError(f"a polygon with points that are no numbers, or far outside {list(size)}")
        segmentation = coco.merge(coco.frPyObjects(segmentation, *size))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("a segmentation is a list of polygons or {size, counts}")
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"a mask of size {segmentation['size']} in a photo of size {list(size)}")
    given = segmentation["counts"]
    counts = decompress(given) if isinstance(given, str | bytes) else np.asarray(given, np.int64).reshape(-1)
    pixels = size[0] * size[1]
    if (counts < 0).any() or (counts > pixels).any() or counts.sum() != pixels:  # the sum alone may wrap around
        raise ValueError(f"runs of {counts.sum()} pixels in a photo of size {list(size)}")
    return counts


def decompress(text: str | bytes) -> Counts:
    """Lengths of runs from COCO's compressed form (cocodataset/cocoapi, `rleFrString`).

    A number is little-endian in characters of five bits, of which the last one's highest is the sign; from the fourth
    on, numbers are differences to the one before the last.

    Raises:
      ValueError: the text is none of this form.
    """
    data = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    is_last = data & 32 == 0
    if not len(data) or data.min() < 0 or data.max() > 63 or not is_last[-1]:
        raise ValueError("runs that are no compressed RLE")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits
        raise ValueError("runs that are no compressed RLE")
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((data & 31) << (5 * place), starts)
    counts -= np.where(data[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return counts


def area(counts: Counts) -> int:
    """Pixels inside the runs."""
    return int(counts[1::2].sum())


def box(counts: Counts, height: int) -> tuple[int, int, int, int]:
    """XYXY around the mask, the last pixels included, as SAM has it; zeros if it is empty."""
    bounds = np.cumsum(counts)
    inside = counts[1::2] > 0
    first, last = bounds[: 2 * len(inside) : 2][inside], bounds[1::2][inside] - 1
    if not len(first):
        return 0, 0, 0, 0
    left, right = first // height, last // height
    top, bottom = (0, height - 1) if (left < right).any() else ((first % height).min(), (last % height).max())
    return int(left[0]), int(top), int(right[-1]), int(bottom)


def to_low_res(
    counts: Counts, size: tuple[int, int], image_size: int, *, flip: bool = False
) -> Bool[np.ndarray, "s4 s4"]:
    """The mask in the frame of the decoder's low-resolution masks, a pixel where at least half of it is covered.

    Coverage is exact: the integral of the mask between the edges of a low-resolution pixel, wherever they fall between
    or within the pixels of the photo.

    Args:
      counts: lengths of runs in the photo.
      size: (height, width) of the photo.
      image_size: S; a pixel of the result is 4 x 4 of the frame that the photo is scaled to.
      flip: mirror the photo, left to right.
    """
    low_res = np.zeros((image_size // 4, image_size // 4), bool)
    x1, y1, x2, y2 = box(counts, size[0])
    if flip:
        x1, x2 = size[1] - 1 - x2, size[1] - 1 - x1
    height, width = (4 * old / new for old, new in zip(size, resized_shape(*size, image_size), strict=True))
    rows = slice(int(y1 // height), min(int((y2 + 1) // height) + 1, len(low_res)))
    columns = slice(int(x1 // width), min(int((x2 + 1) // width) + 1, len(low_res)))
    y, x = np.arange(rows.start, rows.stop + 1) * height, np.arange(columns.start, columns.stop + 1) * width
    integral = _integral(counts, size, y, size[1] - x[::-1] if flip else x)
    covered = np.diff(np.diff(integral, axis=0), axis=1).T
    half = (0.5 - 1e-6) * height * width
    low_res[rows, columns] = (covered[:, ::-1] if flip else covered) >= half
    return low_res


def _integral(
    counts: Counts, size: tuple[int, int], y: Float[np.ndarray, "m"], x: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n m"]:
    """Area of the mask left of each x and between the first y and each y, which may be fractions."""
    height, width = size
    # Pixels of the mask among the first p in column-major order: linear within runs, so exact for a fractional p.
    bounds = np.concatenate([[0], np.cumsum(counts)])
    inside = np.concatenate([[0], np.cumsum(np.where(np.arange(len(counts)) % 2, counts, 0))])
    x, y = np.clip(x, 0, width), np.clip(y, 0, height)
    first, last = int(x[0]), min(int(x[-1]) + 1, width)
    above = np.interp(np.arange(first, last)[:, None] * height + y, bounds, inside)
    above -= above[:, :1].copy()
    left = np.concatenate([np.zeros((1, len(y))), np.cumsum(above, axis=0)])
    whole = np.minimum(x.astype(int), last - 1) - first
    return left[whole] + (x - first - whole)[:, None] * above[whole]

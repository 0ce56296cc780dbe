"""Lengths of runs: masks in COCO's forms, read, written and measured without a bitmap.

pycocotools turns polygons into runs and runs into text. Text is read here, because pycocotools keeps the lengths to
itself, and answers runs that end too early with whatever was in the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco

Counts = Int[np.ndarray, "n"]
"""Lengths of runs of a mask in column-major order, outside and inside in turn, beginning with outside (COCO's RLE)."""


def mask_to_counts(mask: Bool[np.ndarray, "h w"]) -> Counts:
    """Lengths of runs of a whole mask."""
    pixels = mask.T.ravel()
    bounds = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(bounds, prepend=0, append=pixels.size)
    return (np.insert(counts, 0, 0) if pixels[0] else counts).astype(np.int32)


def counts_to_mask(counts: Counts, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask of `size` (height, width) with these lengths of runs."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(size[1], size[0]).T)


def counts_to_rle(counts: Counts, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's uncompressed RLE: `size` [height, width] and `counts`, a list."""
    return {"size": [int(side) for side in size], "counts": [int(count) for count in counts]}


def counts_to_coco(counts: Counts, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed RLE, `counts` as a string that JSON can hold; `pycocotools.mask.decode` reads it."""
    encoded = coco.frPyObjects(counts_to_rle(counts, size), *size)
    return {"size": [int(side) for side in size], "counts": encoded["counts"].decode()}


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
            numbers = all(isinstance(v, Real) and not isinstance(v, bool) for v in polygon)
            if not numbers or not all(abs(value) <= 10 * max(size) for value in polygon):
                raise ValueError(f"a polygon with points that are no numbers, or far outside {list(size)}")
        segmentation = coco.merge(coco.frPyObjects(segmentation, *size))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("a segmentation is a list of polygons or {size, counts}")
    given = segmentation["size"]
    if not isinstance(given, list | tuple) or list(given) != list(size):
        raise ValueError(f"a mask of size {given} in a photo of size {list(size)}")
    pixels = size[0] * size[1]
    counts = _read_counts(segmentation["counts"], pixels)
    if (counts < 0).any() or (counts > pixels).any() or counts.sum() != pixels:  # the sum alone may wrap around
        raise ValueError(f"runs of {counts.sum()} pixels in a photo of size {list(size)}")
    return counts


def _read_counts(given: Any, pixels: int) -> Counts:
    if isinstance(given, str | bytes):
        return decompress(given)
    counts = np.asarray(given, object).reshape(-1)
    if not all(isinstance(n, int | np.integer) and 0 <= n <= pixels for n in counts):
        raise ValueError("counts are a string, or a list of the lengths of runs")
    return counts.astype(np.int64)


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

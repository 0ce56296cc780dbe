"""Masks of annotations in the decoder's frame, exactly: from lengths of runs, without a bitmap of the photo."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from ..inference.rle import Counts, box
from ..transforms import resized_shape


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

"""Salient objects: the mask nearest to the truth, and its mean absolute error.

The protocol is that of "Segment Anything Is Not Always Perfect" (arXiv 2304.05750): of all masks of a photo the one
with the best F1 counts, and a photo without a mask that meets the truth has an error of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import Image

_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class Nearest:
    """What the protocol says of a photo."""

    number: int | None
    """Of the mask that was chosen; None if none meets the truth."""
    error: float
    """Mean absolute error."""
    f1: float


def read_truth(gray: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """What is over half of the brightest pixel."""
    return gray / (gray.max() + _EPSILON) > 0.5


def mean_absolute_error(prediction: Num[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Of a gray prediction, stretched from 0 to 1; one that is the same everywhere is taken as it is, of 255."""
    low, high = float(prediction.min()), float(prediction.max())
    scaled = (prediction - low) / (high - low) if high > low else np.asarray(prediction) / 255
    return float(np.abs(scaled - truth).mean())


def nearest_mask(masks: Iterable[Bool[np.ndarray, "h2 w2"]], truth: Bool[np.ndarray, "h w"]) -> Nearest:
    """The mask with the best F1, the first of equals.

    A mask of another size is resized as Pillow does it (bilinear); then what is not zero counts for F1, and the gray
    values for the error.
    """
    best = Nearest(None, 1.0, 0.0)
    for number, mask in enumerate(masks):
        gray = mask.astype(np.uint8) * np.uint8(255)
        if mask.shape != truth.shape:
            gray = np.asarray(Image.fromarray(gray).resize(truth.shape[::-1], Image.Resampling.BILINEAR))
        f1 = _f1(gray > 0, truth)
        if f1 > best.f1:
            best = Nearest(number, mean_absolute_error(gray, truth), f1)
    return best


def _f1(mask: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    both = np.count_nonzero(mask & truth)
    return 2 * both / (np.count_nonzero(mask) + np.count_nonzero(truth)) if both else 0.0


def mean_error(photos: Iterable[Nearest]) -> float:
    """The mean over photos. Raises ValueError if there are none."""
    errors = [photo.error for photo in photos]
    if not errors:
        raise ValueError("there is no photo to evaluate")
    return float(np.mean(errors))

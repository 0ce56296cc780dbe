"""Anomaly segmentation: from scored masks to maps, and the best F1 of their pixels.

The procedure is that of SAA+ (arXiv 2305.10724; caoyunkang/Segment-Any-Anomaly), as the paper of RepViT-SAM follows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

MAP_SIZE = 400
"""Side of the maps, in pixels, on which all photos are compared."""
BEST = 5
"""Masks that a map is made of."""
FARTHEST = 400
"""Locations that a location's saliency is the mean distance to."""


def rescore(
    masks: Bool[np.ndarray, "n h w"], scores: Float[np.ndarray, "n"], saliency: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "n"]:
    """Scores of boxes times exp(3 s), s being the mean saliency in the mask; an empty mask keeps its score."""
    return np.array(
        [
            score * np.exp(3 * saliency[mask].mean()) if mask.any() else score
            for mask, score in zip(masks, scores, strict=True)
        ],
        np.float64,
    )


def score_map(
    masks: Bool[np.ndarray, "n h w"], scores: Float[np.ndarray, "n"], size: tuple[int, int]
) -> Float[np.ndarray, "s s"]:
    """The sum of the `BEST` masks times their scores, over one more than how many of them cover a pixel.

    Args:
      masks: of a photo; there may be none.
      scores: of each.
      size: (height, width) of the photo.

    Returns:
      The map at `MAP_SIZE`.
    """
    chosen = np.argsort(scores)[-BEST:]
    total, count = np.zeros(size), np.ones(size)
    for i in chosen:
        total += masks[i] * scores[i]
        count += masks[i]
    return resize(total / count, MAP_SIZE, MAP_SIZE)


def self_similarity(features: Float[np.ndarray, "c h w"], size: tuple[int, int]) -> Float[np.ndarray, "h2 w2"]:
    """How unlike a location is to those that it is least like.

    Args:
      features: of unit length at each location.
      size: (height, width) of the result.
    """
    flat = features.reshape(len(features), -1).astype(np.float64)
    distances = 0.5 * (1 - flat.T @ flat)
    largest = np.sort(distances, axis=1)[:, -FARTHEST:]
    return resize(largest.mean(1).reshape(features.shape[1:]), *size)


def normalise(maps: Sequence[Float[np.ndarray, "s s"]]) -> Float[np.ndarray, "n s s"]:
    """Maps of a class, from 0 to 1 over all of them. Raises ValueError if they are the same everywhere."""
    stacked = np.stack(maps)
    low, high = stacked.min(), stacked.max()
    if not high > low:
        raise ValueError(f"all maps are {low:g} everywhere: no photo of the class has a proposal")
    return (stacked - low) / (high - low)


def max_f1(scores: Float[np.ndarray, "*n"], truth: Num[np.ndarray, "*n"]) -> tuple[float, float]:
    """The best F1 over all thresholds, each of the scores being one, and the threshold: what is at least that counts.

    Raises:
      ValueError: the truth has no positive, or the two differ in shape.
    """
    if scores.shape != truth.shape:
        raise ValueError(f"scores of {scores.shape} and a truth of {truth.shape} can't be compared")
    positive = truth.reshape(-1) > 0
    if not positive.any():
        raise ValueError("the truth has no anomalous pixel")
    order = np.argsort(-scores.reshape(-1), kind="stable")
    ordered = scores.reshape(-1)[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of its value
    hits = np.cumsum(positive[order])[last]
    f1 = 2 * hits / (np.flatnonzero(last) + 1 + np.count_nonzero(positive))
    best = int(np.argmax(f1))
    return float(f1[best]), float(ordered[last][best])


def resize(values: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "h2 w2"]:
    """Bilinear in float64, with centres of pixels at a half and without antialiasing, as OpenCV does it."""
    for axis, size in ((0, height), (1, width)):
        position = np.clip((np.arange(size) + 0.5) * values.shape[axis] / size - 0.5, 0, values.shape[axis] - 1)
        low = np.minimum(position.astype(int), max(values.shape[axis] - 2, 0))
        weight = (position - low).reshape((-1, 1) if axis == 0 else -1)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return values


def resize_truth(truth: Num[np.ndarray, "h w"]) -> Bool[np.ndarray, "s s"]:
    """The anomalous pixels at `MAP_SIZE`: nearest, with OpenCV's rounding, which for some sizes is not exact."""
    rows, columns = (_nearest(side) for side in truth.shape)
    return truth[rows][:, columns] > 0


def _nearest(side: int) -> Int[np.ndarray, "s"]:
    return np.minimum(np.floor(np.arange(MAP_SIZE) * (1 / (MAP_SIZE / side))).astype(int), side - 1)

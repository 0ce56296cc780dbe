"""Scenes that move, and points that a perfect tracker follows on them."""

import numpy as np

from repvit_sam_jax.evals.proposals.tracks import Tracks

from . import SIZE, scene, shifted


def moving(seed: int, frames: int, objects: int = 3) -> np.ndarray:
    """Labels [T, h, w] of a scene that moves to the right, two pixels a frame."""
    labels = scene(seed, SIZE, objects)
    return np.stack([shifted(labels, (0, 2 * t)) for t in range(frames)])


def follow(labels: np.ndarray, positives: int = 4, negatives: int = 1, seed: int = 0) -> Tracks:
    """Points on each object of the first frame, then points on the background; NaN and not visible where it is gone."""
    rng = np.random.default_rng(seed)
    numbers = np.unique(labels[0][labels[0] > 0])
    frames, (height, width) = len(labels), labels.shape[1:]
    points = np.full((frames, len(numbers), positives + negatives, 2), np.nan, np.float32)
    for t, k in np.ndindex(points.shape[:2]):
        for place, number, count in ((0, numbers[k], positives), (positives, 0, negatives)):
            y, x = np.nonzero(labels[t, 1:-1, 1:-1] == number)
            if len(x):
                chosen = rng.integers(len(x), size=count)
                points[t, k, place : place + count] = np.stack([x[chosen], y[chosen]], -1) + 1.5
    kinds = np.array([1] * positives + [0] * negatives, np.int8)
    visible = np.isfinite(points).all(-1)
    return Tracks(points, visible, np.tile(kinds, (len(numbers), 1)), (height, width))

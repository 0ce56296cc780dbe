"""Measures of agreement, and golden files."""

from __future__ import annotations

import warnings
from pathlib import Path

import chex
import jax
import numpy as np
from pycocotools import mask as coco

GOLDEN = Path(__file__).parents[1] / "golden"


def relative_rms(found, reference) -> float:
    """Root mean square of the difference over the reference's standard deviation."""
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    assert found.shape == reference.shape
    return float(np.sqrt(np.mean((found - reference) ** 2)) / reference.std())


def sample(array, n: int = 4096) -> np.ndarray:
    """The values of a long array that a golden file holds; see tests/golden/README.md."""
    array = np.asarray(array)
    index = np.random.Generator(np.random.PCG64([0, array.size])).integers(0, array.size, min(n, array.size))
    return array.reshape(-1)[index]


def close(found, expected, bound: float = 2e-6) -> None:
    """Assert that two trees have equal shapes, and that no two leaves differ by more than `bound` relative RMS."""
    jax.tree.map(lambda a, b: chex.assert_trees_all_equal_shapes(a, b), found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_rms(a, b) < bound


def rasterised(segmentation, size: tuple[int, int]) -> np.ndarray:
    """The mask that pycocotools makes of polygons or of compressed runs."""
    if isinstance(segmentation, list):
        segmentation = coco.merge(coco.frPyObjects(segmentation, *size))
    with warnings.catch_warnings(action="ignore"):  # its arrays do not know NumPy 2's copy
        return coco.decode(segmentation).astype(bool)

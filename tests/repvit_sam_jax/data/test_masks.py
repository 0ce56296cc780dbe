"""Masks in the low-resolution frame, against a slow plain version."""

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.data import masks
from repvit_sam_jax.inference.rle import mask_to_counts
from repvit_sam_jax.transforms import low_res_cover, resized_shape
from tests.helpers.photos import smooth_mask


def overlaps(old: int, new: int, cells: int) -> np.ndarray:
    """How much of each of `old` pixels lies in each cell of four of the `new` pixels that they are scaled to."""
    edges = np.arange(cells + 1) * 4 * old / new
    pixels = np.arange(old)
    return np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, None)


def slow_low_res(mask: np.ndarray, image_size: int) -> np.ndarray:
    """Coverage of each cell, as sums of overlaps of pixels, in a dense product."""
    new = resized_shape(*mask.shape, image_size)
    rows, columns = (overlaps(mask.shape[i], new[i], image_size // 4) for i in (0, 1))
    cell = 16 * mask.size / (new[0] * new[1])
    return rows @ mask @ columns.T / cell


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(150, 225), (225, 150), (333, 500), (64, 64), (13, 29), (200, 31), (1, 1), (5, 64)])
def test_low_res_masks_are_exact_coverage(rng, size, flip):
    for _ in range(5):
        mask = smooth_mask(rng, size)
        found = masks.to_low_res(mask_to_counts(mask), size, 64, flip=flip)
        coverage = slow_low_res(mask[:, ::-1] if flip else mask, 64)
        assert found.shape == (16, 16)
        np.testing.assert_array_equal(found, coverage >= 0.5 - 1e-6)
        height, width = resized_shape(*size, 64)
        assert not found[-(-height // 4) :].any()
        assert not found[:, -(-width // 4) :].any()


def test_low_res_masks_of_whole_factors_are_a_box_filter(rng):
    """A half is enough."""
    mask = rng.random((96, 128)) < 0.5
    boxes = Image.fromarray(mask.astype(np.float32)).resize((16, 12), Image.Resampling.BOX)
    found = masks.to_low_res(mask_to_counts(mask), mask.shape, 64)
    np.testing.assert_array_equal(found[:12], np.asarray(boxes) >= 0.5)
    assert (np.asarray(boxes) == 0.5).any()
    assert not masks.to_low_res(np.array([mask.size]), mask.shape, 64).any()


@pytest.mark.parametrize("size", [(150, 225), (225, 150), (64, 64), (13, 29), (1, 1), (5, 64)])
def test_cover_of_bitmaps(rng, size):
    masks_ = np.stack([smooth_mask(rng, size), rng.random(size) < 0.5, np.ones(size, bool)])
    found = low_res_cover(masks_, 64)
    for mask, cover in zip(masks_, found, strict=True):
        np.testing.assert_allclose(cover, slow_low_res(mask, 64), atol=1e-6)
        half = masks.to_low_res(mask_to_counts(mask), size, 64)
        sure = np.abs(cover - 0.5) > 1e-5
        np.testing.assert_array_equal((cover > 0.5)[sure], half[sure])

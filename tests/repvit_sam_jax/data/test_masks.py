"""Lengths of runs, boxes and the low-resolution frame against pycocotools, Pillow and a slow plain version."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from repvit_sam_jax.data import masks
from repvit_sam_jax.inference.masks import counts_to_mask, mask_to_counts
from repvit_sam_jax.transforms import resized_shape


def smooth_mask(rng, size):
    """A mask with regions and holes of several sizes."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)) > rng.integers(60, 200)


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


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (50, 80), (300, 200)])
def test_compressed_runs_are_read_as_pycocotools_reads_them(rng, size):
    for mask in (smooth_mask(rng, size), rng.random(size) < 0.5, np.zeros(size, bool), np.ones(size, bool)):
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = masks.read_segmentation(encoded, size)
        np.testing.assert_array_equal(counts_to_mask(counts, size), mask)
        as_text = {**encoded, "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(masks.read_segmentation(as_text, size), counts)
        np.testing.assert_array_equal(masks.read_segmentation({**encoded, "counts": counts.tolist()}, size), counts)
        assert masks.area(counts) == mask.sum() == coco.area(encoded)
        x1, y1, x2, y2 = masks.box(counts, size[0])
        if mask.any():
            y, x = np.nonzero(mask)
            assert (x1, y1, x2, y2) == (x.min(), y.min(), x.max(), y.max())
        else:
            assert (x1, y1, x2, y2) == (0, 0, 0, 0)


def test_runs_without_length():
    """Runs of length zero, which no encoder writes but some files have."""
    counts = masks.read_segmentation({"size": [4, 3], "counts": [0, 0, 5, 2, 0, 1, 3, 0, 1]}, (4, 3))
    assert masks.box(counts, 4) == (1, 1, 1, 3)
    assert masks.area(counts) == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_polygons():
    polygons = [[2, 1, 8, 1, 8, 5, 2, 5], [10, 10, 14, 10, 12, 14]]
    expected = coco.decode(coco.merge(coco.frPyObjects(polygons, 20, 30))).astype(bool)
    counts = masks.read_segmentation(polygons, (20, 30))
    np.testing.assert_array_equal(counts_to_mask(counts, (20, 30)), expected)


GOOD = "P137000000000l0"  # of 10 x 12 pixels


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [10, 11], "counts": GOOD}, "a mask of size \\[10, 11\\] in a photo of size \\[10, 12\\]"),
        ({"size": [10, 12], "counts": GOOD[:4]}, "runs of 42 pixels"),  # pycocotools answers with uninitialised memory
        ({"size": [10, 12], "counts": [100, 21]}, "runs of 121 pixels"),
        ({"size": [10, 12], "counts": [-1, 121]}, "runs of 120 pixels"),
        ({"size": [10, 12], "counts": ""}, "no compressed RLE"),
        ({"size": [10, 12], "counts": "garbage\0"}, "no compressed RLE"),
        ({"size": [10, 12], "counts": "é"}, "no compressed RLE"),
        ({"size": [10, 12], "counts": "P"}, "no compressed RLE"),
        ({"size": [10, 12], "counts": "P" * 20 + "0"}, "no compressed RLE"),
        ({"counts": GOOD}, "polygons or"),
        (GOOD, "polygons or"),
        ([], "three points"),
        ([[1, 2, 3, 4]], "three points"),
        ([1, 2, 3, 4, 5, 6], "three points"),
    ],
)
def test_bad_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        masks.read_segmentation(segmentation, (10, 12))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(150, 225), (225, 150), (333, 500), (64, 64), (13, 29), (200, 31), (1, 1), (5, 64)])
def test_low_res_masks_are_exact_coverage(rng, size, flip):
    for _ in range(5):
        mask = smooth_mask(rng, size)
        found = masks.to_low_res(mask_to_counts(mask)[0], size, 64, flip=flip)
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
    found = masks.to_low_res(mask_to_counts(mask)[0], mask.shape, 64)
    np.testing.assert_array_equal(found[:12], np.asarray(boxes) >= 0.5)
    assert (np.asarray(boxes) == 0.5).any()
    assert not masks.to_low_res(np.array([mask.size]), mask.shape, 64).any()

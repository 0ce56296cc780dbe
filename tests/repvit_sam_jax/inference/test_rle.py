"""Lengths of runs and their boxes, against pycocotools and Pillow."""

import numpy as np
import pytest
from pycocotools import mask as coco

from repvit_sam_jax.inference import rle
from tests.helpers.photos import smooth_mask


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (50, 80), (300, 200)])
def test_compressed_runs_are_read_as_pycocotools_reads_them(rng, size):
    for mask in (smooth_mask(rng, size), rng.random(size) < 0.5, np.zeros(size, bool), np.ones(size, bool)):
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle.read_segmentation(encoded, size)
        np.testing.assert_array_equal(rle.counts_to_mask(counts, size), mask)
        as_text = {**encoded, "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(rle.read_segmentation(as_text, size), counts)
        np.testing.assert_array_equal(rle.read_segmentation({**encoded, "counts": counts.tolist()}, size), counts)
        assert rle.area(counts) == mask.sum() == coco.area(encoded)
        x1, y1, x2, y2 = rle.box(counts, size[0])
        if mask.any():
            y, x = np.nonzero(mask)
            assert (x1, y1, x2, y2) == (x.min(), y.min(), x.max(), y.max())
        else:
            assert (x1, y1, x2, y2) == (0, 0, 0, 0)


def test_runs_without_length():
    """Runs of length zero, which no encoder writes but some files have."""
    counts = rle.read_segmentation({"size": [4, 3], "counts": [0, 0, 5, 2, 0, 1, 3, 0, 1]}, (4, 3))
    assert rle.box(counts, 4) == (1, 1, 1, 3)
    assert rle.area(counts) == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_polygons():
    polygons = [[2, 1, 8, 1, 8, 5, 2, 5], [10, 10, 14, 10, 12, 14]]
    expected = coco.decode(coco.merge(coco.frPyObjects(polygons, 20, 30))).astype(bool)
    counts = rle.read_segmentation(polygons, (20, 30))
    np.testing.assert_array_equal(rle.counts_to_mask(counts, (20, 30)), expected)


GOOD = "P137000000000l0"  # of 10 x 12 pixels


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [10, 11], "counts": GOOD}, "a mask of size \\[10, 11\\] in a photo of size \\[10, 12\\]"),
        ({"size": [10, 12], "counts": GOOD[:4]}, "runs of 42 pixels"),  # pycocotools answers with uninitialised memory
        ({"size": [10, 12], "counts": [100, 21]}, "runs of 121 pixels"),
        ({"size": [10, 12], "counts": [-1, 121]}, "counts are a string, or a list of the lengths of runs"),
        ({"size": [10, 12], "counts": [10**30]}, "counts are a string, or a list of the lengths of runs"),
        ({"size": [10, 12], "counts": None}, "counts are a string, or a list of the lengths of runs"),
        ({"size": 5, "counts": GOOD}, "a mask of size 5 in a photo"),
        ([["1", "1", "5", "1", "5", "5"]], "points that are no numbers"),
        ([[True, True, 5, 1, 5, 5]], "points that are no numbers"),
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
        rle.read_segmentation(segmentation, (10, 12))

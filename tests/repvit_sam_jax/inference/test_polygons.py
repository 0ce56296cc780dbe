"""Polygons of masks, which pycocotools makes the same masks of again."""

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from repvit_sam_jax.inference.polygons import mask_to_polygons
from tests.helpers.measures import rasterised


@pytest.mark.parametrize("smoothness", [0, 0.7, 2])
def test_polygons_give_the_mask_back(rng, smoothness):
    for _ in range(40):
        size = tuple(int(side) for side in rng.integers(2, 40, 2))
        mask = ndimage.gaussian_filter(rng.normal(size=size), smoothness) > 0
        mask[0, 0] = True
        polygons = mask_to_polygons(mask)
        assert np.array_equal(rasterised(polygons, size), mask)
        assert all(len(polygon) >= 8 for polygon in polygons)


def test_corners_alone_clockwise_in_pixels_of_the_photo():
    mask = np.zeros((9, 12), bool)
    mask[3:6, 4:10] = mask[6, 4] = True
    assert mask_to_polygons(mask) == [[10, 3, 10, 6, 5, 6, 5, 7, 4, 7, 4, 3]]


def test_parts_are_apart_and_large_ones_first():
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = mask[2, 2] = mask[2, 3] = mask[3, 2] = True  # pixels that touch at a corner are two parts
    polygons = mask_to_polygons(mask)
    assert [len(polygon) for polygon in polygons] == [12, 8]


def test_a_hole_is_cut_through():
    mask = np.ones((7, 9), bool)
    mask[2:5, 3:6] = False
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2
    assert np.array_equal(rasterised(polygons, mask.shape), mask)
    areas = [coco.area(coco.frPyObjects([polygon], *mask.shape))[0] for polygon in polygons]
    assert sum(areas) == np.count_nonzero(mask)


def test_no_mask_no_polygons():
    assert mask_to_polygons(np.zeros((3, 4), bool)) == []

"""Masks as sets of pixels, against plain code and against libraries."""

import numpy as np
import pytest
from pycocotools import mask as coco
from skimage import measure

from repvit_sam_jax import transforms
from repvit_sam_jax.inference import masks, rle

SIZES = [(75, 110), (33, 128), (128, 128), (300, 90), (200, 333), (1, 40), (7, 5)]


def blob(rng, size, density=0.5):
    """Smooth noise, thresholded: islands and holes of many sizes."""
    coarse = rng.normal(size=(8, 8)).astype(np.float32)
    noise = transforms.resize_bilinear(coarse, *size) + 0.4 * rng.normal(size=size)
    return noise > np.quantile(noise, 1 - density)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [1.0, 0.25])
def test_upscaled_masks_equal_the_two_resizes(rng, size, offset):
    """Also where only a part of the photo can hold the mask, and where nothing can."""
    logits = rng.normal(size=(6, 32, 32)).astype(np.float32) * 2
    logits[1:4] -= 30
    logits[1, 20:23, 4:7] = 5  # in the middle
    logits[2, 0, -3:] = 5  # in a corner, perhaps in the padding
    logits[4] += 30
    upscaler = masks.Upscaler(size, 128, 32)
    for low_res, full in zip(logits, transforms.postprocess_masks(logits, size, 128), strict=True):
        found = upscaler(low_res, 0.5, offset)
        expected = full > 0.5
        assert (found.above, found.below) == ((full > 0.5 + offset).sum(), (full > 0.5 - offset).sum())
        whole = np.zeros(size, bool)
        height, width = found.columns.shape[1] - 1, len(found.columns)
        whole[found.top : found.top + height, found.left : found.left + width] = found.columns[:, :-1].T
        np.testing.assert_array_equal(whole, expected)
        runs = found.runs()
        counts = masks.runs_to_counts(*runs, size)
        np.testing.assert_array_equal(rle.counts_to_mask(counts, size), expected)
        rows, columns = expected.nonzero()
        box = [columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
        assert masks.runs_to_box(*runs) == box


def test_masks_of_a_photo_that_was_made_smaller_are_resized_once_more(rng):
    logits = rng.normal(size=(32, 32)).astype(np.float32)
    upscaler = masks.Upscaler((60, 90), 128, 32, (131, 197))
    small = transforms.postprocess_masks(logits[None], (60, 90), 128)[0]
    expected = transforms.resize_bilinear(small, 131, 197)
    np.testing.assert_allclose(upscaler.logits(logits), expected, atol=1e-5)
    counts = masks.runs_to_counts(*upscaler(logits, 0.1, 0).runs(), (131, 197))
    np.testing.assert_array_equal(rle.counts_to_mask(counts, (131, 197)), expected > 0.1)


def test_stability_score():
    assert masks.UpscaledMask(1, 3, None, 0, 0).stability_score == np.float32(1) / np.float32(3)
    assert np.isnan(masks.UpscaledMask(0, 0, None, 0, 0).stability_score)
    # Counts are rounded to float32 before the division, as SAM does.
    assert masks.UpscaledMask(2**24, 2**24 + 1, None, 0, 0).stability_score == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", [0, 0.1, 0.5, 1])
def test_runs_are_those_of_coco(rng, size, density):
    mask = np.ones(size, bool) if density == 1 else blob(rng, size, density)
    counts, box = rle.mask_to_counts(mask), masks.box_of(mask)
    assert counts.sum() == mask.size
    assert counts[1::2].sum() == mask.sum()
    assert (counts[1:] > 0).all()
    np.testing.assert_array_equal(rle.counts_to_mask(counts, size), mask)
    encoded = rle.counts_to_coco(counts, size)
    expected = coco.encode(np.asfortranarray(mask, np.uint8))
    assert encoded == {"size": list(size), "counts": expected["counts"].decode()}
    assert rle.counts_to_rle(counts, size) == {"size": list(size), "counts": counts.tolist()}
    rows, columns = mask.nonzero()
    assert box == ((columns.min(), rows.min(), columns.max(), rows.max()) if len(rows) else None)


def test_runs_of_a_part_moved_into_the_photo(rng):
    """A crop that spans the photo's height, so that runs join over columns, and one that doesn't."""
    part = blob(rng, (20, 12), 0.8)
    for height, top in ((20, 0), (33, 5)):
        photo = np.zeros((height, 40), bool)
        photo[top : top + 20, 9:21] = part
        x, y = masks.UpscaledMask(0, 0, np.pad(part.T, ((0, 0), (0, 1))), 0, 0).runs()
        counts = masks.runs_to_counts(x + 9, y + top, photo.shape)
        np.testing.assert_array_equal(counts, rle.mask_to_counts(photo))


def test_point_grid():
    np.testing.assert_allclose(masks.point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert masks.point_grid(5).shape == (25, 2)


def test_crops_cover_the_photo_and_overlap():
    crops = masks.crop_boxes((300, 500), 2, 512 / 1500)
    assert crops[0] == ((0, 0, 500, 300), 0)
    # 2 x 2, column by column, 102 pixels of overlap: a third of the shorter side.
    assert [box for box, layer in crops if layer == 1] == [
        (0, 0, 301, 201),
        (0, 99, 301, 300),
        (199, 0, 500, 201),
        (199, 99, 500, 300),
    ]
    assert [layer for _, layer in crops].count(2) == 16
    for layer in (1, 2):
        covered = np.zeros((300, 500), int)
        for (x1, y1, x2, y2), _ in (crop for crop in crops if crop[1] == layer):
            covered[y1:y2, x1:x2] += 1
        assert covered.min() == 1
        assert covered.max() == 4
    with pytest.raises(ValueError, match="width 6, height 3 is too small for 4 x 4 crops; set crop_n_layers to less"):
        masks.crop_boxes((3, 6), 3, 0)


def test_boxes_near_the_edge_of_a_crop():
    crop, size = (100, 0, 300, 200), (200, 600)
    boxes = np.array(
        [
            [121, 21, 279, 170],  # 21 pixels off
            [120, 21, 279, 170],  # left edge
            [121, 0, 279, 199],  # top and bottom are edges of the photo, too
            [121, 21, 320, 170],  # over the right edge by 20
            [121, 21, 321, 170],
        ]
    )
    np.testing.assert_array_equal(masks.near_crop_edge(boxes, crop, size), [False, True, False, True, False])
    assert not masks.near_crop_edge(np.array([0, 0, 599, 199]), (0, 0, 600, 200), size)


def test_nms():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [20, 20, 30, 30], [5, 5, 5, 9], [5, 5, 5, 9]])
    scores = np.array([0.5, 0.9, 0.7, 0.7, 0.1, 0.1], np.float32)
    np.testing.assert_array_equal(masks.nms(boxes, scores, 0.8), [1, 2, 4, 5])  # a tie; boxes without an area
    np.testing.assert_array_equal(masks.nms(boxes, scores, 0.9), [1, 2, 0, 4, 5])  # 90 / 100 is not more than 0.9
    halves = np.array([[0, 0, 4, 1], [0, 0, 2, 1]])
    np.testing.assert_array_equal(masks.nms(halves, np.ones(2, np.float32), 0.5), [0, 1])  # nor is 2 / 4 more than 0.5
    assert len(masks.nms(np.zeros((0, 4)), np.zeros(0, np.float32), 0.7)) == 0
    # An IoU of 3/5 is a little more than 0.6 once it is rounded to float32, as in torchvision.
    thirds = np.array([[0, 0, 5, 1], [0, 0, 3, 1]])
    np.testing.assert_array_equal(masks.nms(thirds, np.ones(2, np.float32), 0.6), [0])


@pytest.mark.torch
def test_nms_equals_the_plain_loop(rng):
    from benchmarks.plain_generator import plain_nms

    for _ in range(20):
        corners = rng.integers(0, 40, (60, 2))
        boxes = np.concatenate([corners, corners + rng.integers(0, 12, (60, 2))], axis=1)
        scores = rng.integers(0, 8, 60).astype(np.float32) / 8
        for threshold in (0.3, 0.6, 0.7):
            assert masks.nms(boxes, scores, threshold).tolist() == plain_nms(list(boxes), scores.tolist(), threshold)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(40, 60), (30, 30), (5, 90)])
@pytest.mark.parametrize("min_area", [1, 4, 30, 5000])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.7, 1])
def test_small_regions(rng, size, min_area, density):
    from benchmarks.plain_generator import _without_small_regions

    mask = np.ones(size, bool) if density == 1 else blob(rng, size, density)
    mask[: size[0] // 2, : size[1] // 3] &= density == 1  # so that the mask does not fill the photo
    found, changed = masks.remove_small_regions(mask, min_area)
    expected, expected_changed = _without_small_regions(mask, min_area)
    np.testing.assert_array_equal(found, expected)
    assert changed == expected_changed
    labels, count = measure.label(found, connectivity=2, return_num=True)
    assert count == 1 or (np.bincount(labels.ravel())[1:] >= min_area).all()


def test_regions_are_connected_over_corners():
    """Holes too, as in the official code; and outside pixels at the photo's edge are a hole if they are few."""
    mask = np.zeros((6, 9), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True
    assert masks.remove_small_regions(mask, 3)[1] is False
    assert masks.remove_small_regions(mask, 4) == (pytest.approx(mask), True)  # the only island stays
    ring = np.ones((6, 9), bool)
    ring[2, 2] = ring[3, 3] = ring[5, 8] = False
    filled, changed = masks.remove_small_regions(ring, 2)
    assert changed
    assert filled.sum() == ring.sum() + 1
    assert filled[5, 8]
    empty = np.zeros((4, 4), bool)
    assert masks.remove_small_regions(empty, 3)[1] is False

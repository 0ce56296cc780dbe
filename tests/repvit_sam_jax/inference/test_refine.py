"""Refinement of masks against slow plain versions, and what it is for."""

import jax
import numpy as np
import pytest

from repvit_sam_jax.inference.refine import clip_to_box, snap_to_edges

SIDE = 16


def test_clipping_equals_the_plain_version(rng):
    logits = rng.normal(size=(2, 3, 2, SIDE, SIDE)).astype(np.float32)
    boxes = np.sort(rng.uniform(0, 63, (2, 3, 2, 2)), axis=2).reshape(2, 3, 4).astype(np.float32)
    boxes[0, 0] = [20.0, 10.0, 21.5, 60.0]  # thinner than a pixel of the mask
    found = np.asarray(jax.jit(clip_to_box)(logits, boxes))
    for b, p, m, row, column in np.ndindex(logits.shape):
        x0, y0, x1, y1 = boxes[b, p] + 0.5  # users count from the centre of the first pixel
        width = max(0, min(x1, 4 * column + 4) - max(x0, 4 * column))
        share = width * max(0, min(y1, 4 * row + 4) - max(y0, 4 * row)) / 16
        value = logits[b, p, m, row, column]
        bound = (share - 0.5) / (1.5 - share) if share >= 0.5 else -(0.5 - share) / (0.5 + share)
        expected = min(value, abs(value) * bound)
        assert found[b, p, m, row, column] == pytest.approx(expected, abs=1e-5)


def test_a_clipped_mask_ends_at_the_box():
    """Enlarged to the frame: a quarter, a half and three quarters into a pixel of the mask."""
    full = np.ones((1, 1, 1, SIDE, SIDE), np.float32)
    for edge in (41.0, 42.0, 43.0, 44.0):
        clipped = clip_to_box(full, np.array([[[-0.5, -0.5, edge - 0.5, 63.5]]], np.float32))
        row = np.asarray(jax.image.resize(clipped[0, 0, 0], (64, 64), "linear"))[32]
        assert (row > 0).sum() == edge


def plain(logits, colours):
    """Pixel by pixel."""
    b, p, m, h, w = logits.shape
    x = logits / 4
    for distance in (2, 2, 1, 1):
        new = np.empty_like(x)
        for image, row, column in np.ndindex(b, h, w):
            total, drawn = 1e-3, np.zeros((p, m))
            for i, j in np.ndindex(3, 3):
                at = (row + distance * (i - 1), column + distance * (j - 1))
                if (i, j) == (1, 1) or not (0 <= at[0] < h and 0 <= at[1] < w):
                    continue
                near = np.exp(-np.sum((2.9 * (colours[image, row, column] - colours[(image, *at)])) ** 2))
                total += near
                drawn += near * np.tanh(x[(image, slice(None), slice(None), *at)] / 4)
            new[image, :, :, row, column] = logits[image, :, :, row, column] / 4 + 5 * drawn / total
        x = new
    return x


def test_snapping_equals_the_plain_version(rng):
    logits = 4 * rng.normal(size=(2, 2, 3, SIDE, SIDE))
    images = rng.normal(size=(2, 4 * SIDE, 4 * SIDE, 3))
    colours = images.reshape(2, SIDE, 4, SIDE, 4, 3).mean((2, 4))
    found = jax.jit(snap_to_edges)(logits.astype(np.float32), images.astype(np.float32))
    np.testing.assert_allclose(found, plain(logits, colours), atol=1e-4)


def test_masks_move_to_the_edge_of_a_colour():
    """A disc of another colour, and a mask that is moved and ragged; a disc of its colour, far away, stays out."""
    i, j = np.indices((64, 64))
    disc = (i - 24) ** 2 + (j - 24) ** 2 < 144
    elsewhere = (i - 50) ** 2 + (j - 50) ** 2 < 64
    colours = np.where((disc | elsewhere)[..., None], [1.0, 0.0, 0.0], [0.0, 0.5, 0.0])
    images = colours.repeat(4, 0).repeat(4, 1)[None].astype(np.float32)
    noise = np.random.default_rng(0).normal(size=(64, 64))
    rough = (3.0 * np.where((i - 25) ** 2 + (j - 23) ** 2 < 144, 1, -1) + 2 * noise).astype(np.float32)
    found = snap_to_edges(rough[None, None, None], images)
    iou = lambda mask: (mask & disc).sum() / (mask | disc).sum()
    assert iou(rough > 0) < 0.75
    assert iou(np.asarray(found)[0, 0, 0] > 0) > 0.95

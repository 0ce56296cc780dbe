"""Clicks on what is wrong, against plain loops."""

import numpy as np
import pytest

from repvit_sam_jax.evals import clicks
from repvit_sam_jax.inference import rle


def expected(truth, mask, clicked):
    """RITM's rule: the largest distance to the nearest pixel of another kind, the frame's surroundings among them."""
    found = {}
    for foreground, region in ((0, mask & ~truth), (1, truth & ~mask)):
        padded = np.pad(region, 1)
        others = np.argwhere(~padded)
        distances = {
            (x, y): np.sqrt(((others - (y + 1, x + 1)) ** 2).sum(1).min())
            for y, x in np.argwhere(region).tolist()
            if (x, y) not in clicked
        }
        found[foreground] = max(distances.items(), key=lambda one: one[1], default=(None, 0))
    label = int(found[1][1] > found[0][1])
    return found[label][0], label


@pytest.mark.parametrize("seed", range(4))
def test_each_click_is_where_the_mask_is_most_wrong(seed):
    rng = np.random.default_rng(seed)
    truth = np.zeros((14, 17), bool)
    truth[3:12, 4:13] = True
    truth &= rng.random(truth.shape) > 0.05
    chain = clicks.Chain(rle.mask_to_counts(truth), truth.shape)
    mask, clicked = np.zeros_like(truth), []
    for _ in range(8):
        point, label = expected(truth, mask, clicked)
        clicked.append(point)
        assert (chain.points, chain.labels[-1]) == (clicked, label)
        if rng.random() < 0.5:  # otherwise the mask ignores the click
            mask = np.zeros_like(truth)
            y, x = rng.integers(0, 8, 2)
            mask[y : y + 7, x : x + 9] = True
        chain.answer(rle.mask_to_counts(mask))


def test_equal_errors_are_clicked_as_background():
    truth, mask = np.zeros((2, 9, 20), bool)
    truth[2:7, 2:7] = True
    mask[2:7, 12:17] = True
    chain = clicks.Chain(rle.mask_to_counts(truth), truth.shape)
    chain.answer(rle.mask_to_counts(mask))
    assert (chain.points, chain.labels) == ([(4, 4), (14, 4)], [1, 0])


def test_clicks_end_at_five_once_the_target_is_reached_and_at_twenty_otherwise():
    truth = np.ones((10, 10), bool)
    for last, count in (((9, 10), 5), ((8, 10), 20)):  # 0.9 is reached, as RITM counts
        mask = truth.copy()
        mask[slice(*last)] = False
        chain = clicks.Chain(rle.mask_to_counts(truth), truth.shape)
        while chain.goes_on:
            chain.answer(rle.mask_to_counts(mask))
        assert len(chain.ious) == len(set(chain.points)) == count
    chain = clicks.Chain(rle.mask_to_counts(truth), truth.shape)
    chain.answer(rle.mask_to_counts(truth))
    assert (chain.ious, chain.goes_on) == ([1.0], False)


def test_the_first_click_that_reaches_a_target_counts():
    assert clicks.reached([0.2, 0.86, 0.9, 0.95], 0.85) == 2
    assert clicks.reached([0.2, 0.86, float(np.float32(0.9)), 0.95], 0.9) == 3
    assert clicks.reached([0.2, 0.5], 0.9) == 0

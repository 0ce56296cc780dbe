"""Pictures of masks, and their colours."""

import numpy as np
import pytest
from scipy import ndimage

from repvit_sam_jax.inference import colours
from repvit_sam_jax.inference.overlay import caption_height, draw_masks, draw_overlay

IMAGE = np.full((40, 50, 3), 100, np.uint8)
MASK = np.zeros((40, 50), bool)
MASK[10:30, 10:30] = True


def test_the_mask_alone_is_tinted():
    drawn = draw_overlay(IMAGE, MASK)
    far = ~ndimage.binary_dilation(MASK, iterations=2)
    assert (drawn[far] == 100).all()
    assert (drawn[20, 20] == [65, 122, 178]).all()  # half of SAM's blue
    assert (draw_overlay(IMAGE, MASK, opacity=0)[20, 20] == 100).all()
    assert drawn[10, 20].min() > 190  # the outline, white, is shared by the pixels on either side of the edge
    assert drawn[9, 20].min() > 190
    assert (draw_overlay(IMAGE, np.zeros_like(MASK)) == IMAGE).all()
    whole = draw_overlay(IMAGE, np.ones_like(MASK))
    assert (whole == [65, 122, 178]).all()  # the photo's edge is no edge of the mask


def test_outlines_are_smooth():
    y, x = np.indices(MASK.shape)
    disc = np.hypot(y - 20, x - 25) < 12.3
    levels = np.unique(draw_overlay(IMAGE, disc)[..., 0])
    assert len(levels) > 10
    assert len(np.unique(draw_masks(IMAGE, [disc])[..., 0])) > 10


def test_a_caption_covers_nothing():
    plain = draw_overlay(IMAGE, MASK, [(5, 5), (45, 35)], [1, 0], (2, 2, 48, 38))
    titled = draw_overlay(IMAGE, MASK, [(5, 5), (45, 35)], [1, 0], (2, 2, 48, 38), caption="hello")
    np.testing.assert_array_equal(titled[caption_height(50) :], plain)
    assert titled[: caption_height(50)].max() > 200
    assert tuple(plain[35, 45]) == (235, 60, 60)
    assert tuple(plain[2, 20]) == (255, 210, 0)


def test_points_at_the_edge_are_drawn_as_far_as_they_are_in_the_photo():
    drawn = draw_overlay(IMAGE, MASK, [(0, 0), (49.4, 39.4)], [1, 0])
    assert drawn.shape == IMAGE.shape
    assert tuple(drawn[0, 0]) == (60, 220, 90)
    assert tuple(drawn[39, 49]) == (235, 60, 60)


def test_each_mask_has_a_colour_and_later_ones_lie_over_earlier_ones():
    masks = np.zeros((2, 40, 50), bool)
    masks[0, 5:25, 5:25] = True
    masks[1, 10:20, 15:45] = True
    drawn = draw_masks(IMAGE, masks)
    first, second = (np.round(50 + colour / 2.0) for colour in colours.palette(2))
    np.testing.assert_allclose(drawn[15, 10], first, atol=1)
    np.testing.assert_allclose(drawn[15, 20], second, atol=1)
    assert (drawn[~ndimage.binary_dilation(masks.any(0), iterations=2)] == 100).all()


def test_masks_that_do_not_fit_are_refused():
    for wrong, message in (
        (MASK[:20], "shape"),
        (MASK.astype(np.uint8), r"uint8; give booleans, such as mask\.astype"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_overlay(IMAGE, wrong)
        with pytest.raises(ValueError, match=f"mask 1 .*{message}"):
            draw_masks(IMAGE, [MASK, wrong])


@pytest.mark.parametrize(("count", "least"), [(8, 0.13), (16, 0.08), (100, 0.025)])
def test_colours_stay_apart_for_every_kind_of_vision(count, least):
    """In OKLab, where 0.02 can just be told apart side by side."""
    shown = colours.palette(count)
    assert tuple(shown[0]) == colours.FIRST
    for seen in colours.as_seen(shown):
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1)[~np.eye(count, dtype=bool)]
        assert apart.min() > least


def test_colours_that_the_simulation_of_vision_must_confuse():
    """Red and green of one lightness are near without red or green cones, and far with them."""
    red, green = [np.array([colour]) for colour in ((196, 80, 60), (110, 125, 40))]
    usual, protan, deutan, tritan = (
        np.linalg.norm(a - b) for a, b in zip(colours.as_seen(red), colours.as_seen(green), strict=True)
    )
    assert min(usual, tritan) > 2 * min(protan, deutan)


def test_colours_repeat_after_the_last():
    assert (colours.palette(colours.MOST + 3)[-3:] == colours.palette(3)).all()

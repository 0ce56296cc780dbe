"""Prompts, images and embeddings that are wrong, missing or merely odd."""

import numpy as np
import pytest

from repvit_sam_jax import SamPredictor
from tests.repvit_sam_jax.bad_input.conftest import HEIGHT, POINT, WIDTH, assert_usable

# Prompts
LOW_RES = 32  # of the tiny preset
ZEROS = np.zeros((1, LOW_RES, LOW_RES))
BAD_PROMPTS = {
    "left": (
        {"point_coords": [[-1, 5]], "point_labels": [1]},
        r"point 0, \(-1, 5\), lies outside.*width 90, height 60",
    ),
    "above": ({"point_coords": [[5, -0.5]], "point_labels": [1]}, r"point 0, \(5, -0.5\), lies outside"),
    "right": ({"point_coords": [[90.5, 5]], "point_labels": [1]}, r"point 0, \(90.5, 5\), lies outside"),
    "below": ({"point_coords": [[5, 61]], "point_labels": [0]}, r"point 0, \(5, 61\), lies outside"),
    "second outside": (
        {"point_coords": [[5, 5], [5, 61]], "point_labels": [1, 1]},
        r"point 1, \(5, 61\), lies outside",
    ),
    "x and y swapped": ({"point_coords": [[50, 80]], "point_labels": [1]}, r"point 0, \(50, 80\), lies outside"),
    "outside in many": (
        {"point_coords": [[[5, 5]], [[5, 61]]], "point_labels": [[1], [1]]},
        r"point 0 of prompt 1, \(5, 61\), lies outside",
    ),
    "nan": ({"point_coords": [[np.nan, 5]], "point_labels": [1]}, r"point 0 is not finite: \(nan, 5"),
    "inf": ({"point_coords": [[5, np.inf]], "point_labels": [1]}, r"point 0 is not finite: \(5.*, inf"),
    "none": ({"point_coords": [[None, 5]], "point_labels": [1]}, "point 0 is not finite"),
    "complex": ({"point_coords": [[5 + 1j, 5]], "point_labels": [1]}, "point_coords is not an array of real numbers"),
    "complex label": ({"point_coords": [[5, 5]], "point_labels": [1j]}, "point_labels is not an array of real numbers"),
    "complex box": ({"box": np.array([1, 2, 3, 4j])}, "box is not an array of real numbers"),
    "beyond float": ({"point_coords": [[10**400, 5]], "point_labels": [1]}, "point_coords is not an array of real"),
    "dates": ({"box": np.array([1, 2, 3, 4], "M8[D]")}, "box is not an array of real numbers: .*datetime64"),
    "text": ({"point_coords": "ab", "point_labels": [1]}, "point_coords is not an array of real numbers"),
    "scalar": ({"point_coords": 5, "point_labels": 1}, "point_coords"),
    "one axis": ({"point_coords": [5, 5], "point_labels": [1]}, r"point_coords must have shape \[N, 2\]"),
    "three coordinates": ({"point_coords": [[5, 5, 5]], "point_labels": [1]}, r"point_coords must have.*got \(1, 3\)"),
    "four axes": ({"point_coords": np.zeros((1, 1, 1, 2)), "point_labels": [[[1]]]}, "point_coords must have shape"),
    "ragged": ({"point_coords": [[5, 5], [5]], "point_labels": [1, 1]}, "point_coords is not an array of real numbers"),
    "ragged in many": ({"point_coords": [[[5, 5], [5]]], "point_labels": [[1, 1]]}, "point_coords"),
    "too many labels": (
        {"point_coords": [[5, 5]], "point_labels": [1, 1]},
        r"point_labels has shape \(2,\) for 1 points",
    ),
    "too few labels": (
        {"point_coords": [[5, 5]] * 3, "point_labels": [1]},
        r"point_labels has shape \(1,\) for 3 points",
    ),
    "scalar label": ({"point_coords": [[5, 5]], "point_labels": 1}, r"point_labels has shape \(\) for 1 points"),
    "scalar label for many": ({"point_coords": [[[5, 5]]], "point_labels": 1}, "point_labels"),
    "labels of one of two": (
        {"point_coords": [[[5, 5]]] * 2, "point_labels": [[1]]},
        "point_labels has 1 prompts for 2",
    ),
    "no labels": ({"point_coords": [[5, 5]]}, "point_labels must be given with point_coords"),
    "labels alone": ({"point_labels": [1]}, "point_labels was given without point_coords"),
    "label 2": ({"point_coords": [[5, 5]], "point_labels": [2]}, "label 0 is 2; labels are"),
    "label 7": ({"point_coords": [[5, 5], [6, 6]], "point_labels": [1, 7]}, "label 1 is 7; labels are"),
    "label -2": ({"point_coords": [[5, 5]], "point_labels": [-2]}, "label 0 is -2; labels are"),
    "label 0.5": ({"point_coords": [[5, 5]], "point_labels": [0.5]}, "label 0 is 0.5; labels are"),
    "label nan": ({"point_coords": [[5, 5]], "point_labels": [np.nan]}, "label 0 is nan; labels are"),
    "nothing": ({}, "no prompt was given; pass point_coords"),
    "no points": ({"point_coords": [], "point_labels": []}, "point_coords is empty, and there is neither"),
    "no points in an array": ({"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)}, "point_coords is empty"),
    "no points in two": (
        {"point_coords": np.zeros((2, 0, 2)), "point_labels": np.zeros((2, 0))},
        "point_coords of prompt 0 is empty",
    ),
    "no prompts": ({"point_coords": np.zeros((0, 1, 2)), "point_labels": np.zeros((0, 1))}, "point_coords"),
    "no boxes": ({"box": np.zeros((0, 4))}, r"box holds no prompts, shape \(0, 4\)"),
    "no masks": ({"mask_input": np.zeros((0, 1, LOW_RES, LOW_RES))}, r"mask_input must hold .* got \(0, 1, 32, 32\)"),
    "box x2 < x1": ({"box": [30, 10, 20, 40]}, r"the box is inverted: \(30, 10, 20, 40\)"),
    "box y2 < y1": ({"box": [10, 40, 30, 20]}, r"the box is inverted: \(10, 40, 30, 20\)"),
    "box nan": ({"box": [10, 10, np.nan, 40]}, r"the box is not finite: \(10, 10, nan, 40\)"),
    "box inf": ({"box": [10, 10, np.inf, 40]}, r"the box is not finite: \(10, 10, inf, 40\)"),
    "box beyond float32": ({"box": [10, 10, 1e300, 40]}, "the box"),
    "box at the left": ({"box": [-20, 10, -5, 40]}, r"the box, \(-20, 10, -5, 40\), lies outside.*width 90, height 60"),
    "box above": ({"box": [10, -20, 30, -5]}, r"the box, .*, lies outside"),
    "box at the right": ({"box": [95, 10, 100, 40]}, r"the box, .*, lies outside"),
    "box below": ({"box": [10, 65, 30, 80]}, r"the box, .*, lies outside"),
    "second box inverted": ({"box": [[1, 2, 3, 4], [3, 2, 1, 4]]}, "the box of prompt 1 is inverted"),
    "box of three": ({"box": [10, 10, 30]}, r"box must have shape .* got \(3,\)"),
    "box as corners": ({"box": [[10, 10], [30, 40]]}, r"box must have shape .* got \(2, 2\)"),
    "box of three axes": ({"box": [[[1, 2, 3, 4]]]}, r"box must have shape .* got \(1, 1, 4\)"),
    "box a scalar": ({"box": 5}, r"box must have shape .* got \(\)"),
    "box a text": ({"box": "1,2,3,4"}, "box is not an array of real numbers"),
    "two point prompts, three boxes": (
        {"point_coords": [[[5, 5]]] * 2, "point_labels": [[1]] * 2, "box": [[1, 2, 3, 4]] * 3},
        "differ in number: 2 in point_coords, 3 in box",
    ),
    "one point prompt, two boxes": (
        {**POINT, "box": [[1, 2, 3, 4]] * 2},
        "differ in number: 1 in point_coords, 2 in box",
    ),
    "two boxes, one mask": (
        {"box": [[1, 2, 3, 4]] * 2, "mask_input": ZEROS},
        "differ in number: 2 in box, 1 in mask_input",
    ),
    "mask of another side": ({"mask_input": np.zeros((1, 256, 256))}, r"shape \[1, 32, 32\] .* got \(1, 256, 256\)"),
    "mask without channel": ({"mask_input": ZEROS[0]}, r"shape \[1, 32, 32\] .* got \(32, 32\)"),
    "mask of three channels": ({"mask_input": ZEROS.repeat(3, 0)}, r"shape \[1, 32, 32\] .* got \(3, 32, 32\)"),
    "mask nan": ({"mask_input": ZEROS + np.nan}, "mask_input has NaN or infinite"),
    "mask inf": ({"mask_input": ZEROS - np.inf}, "mask_input has NaN or infinite"),
    "mask beyond float32": ({"mask_input": ZEROS + 1e39}, "mask_input"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompt(predictor, name):
    given, message = BAD_PROMPTS[name]
    with pytest.raises(ValueError, match=message):
        predictor.predict(**given)
    assert_usable(predictor)


LEGAL_PROMPTS = {
    "top left corner": {"point_coords": [[0, 0]], "point_labels": [1]},
    "bottom right corner": {"point_coords": [[WIDTH, HEIGHT]], "point_labels": [1]},
    "not a point": {"point_coords": [[20, 30], [np.nan, -500]], "point_labels": [1, -1]},
    "labels as bool": {"point_coords": [[20, 30]], "point_labels": [True]},
    "box over every edge": {"box": [-10, -20, WIDTH + 10, HEIGHT + 20]},
    "box over one edge": {"box": [70, 10, WIDTH + 50, 40]},
    "box of no area": {"box": [20, 30, 20, 30]},
    "box on the edge": {"box": [WIDTH, 0, WIDTH, HEIGHT]},
    "box in a list": {"box": [[10, 10, 30, 40]]},
    "no points beside a box": {"point_coords": [], "point_labels": [], "box": [10, 10, 30, 40]},
}


@pytest.mark.parametrize("name", LEGAL_PROMPTS)
def test_odd_but_legal_prompt(predictor, name):
    masks, iou, low_res = predictor.predict(**LEGAL_PROMPTS[name])
    assert masks.shape == (3, HEIGHT, WIDTH)
    assert np.isfinite(iou).all()
    assert np.isfinite(low_res).all()


def test_not_a_point_hides_its_coordinates(predictor):
    *_, expected = predictor.predict([[20, 30], [0, 0]], [1, -1])
    *_, found = predictor.predict([[20, 30], [np.inf, -500]], [1, -1])
    np.testing.assert_array_equal(found, expected)


# Images and embeddings that are not set, or set wrongly
@pytest.mark.parametrize(
    "use",
    [
        lambda predictor: predictor.predict(**POINT),
        lambda predictor: predictor.predict_batch([[[20, 30]]], [[1]]),
        lambda predictor: predictor.get_image_embedding(),
        lambda predictor: predictor.original_size,
        lambda predictor: predictor.input_size,
    ],
    ids=["predict", "predict_batch", "get_image_embedding", "original_size", "input_size"],
)
@pytest.mark.parametrize("reset", [False, True])
def test_no_image_is_set(tiny, predictor, use, reset):
    if reset:
        predictor.reset_image()
    else:
        predictor = SamPredictor(*tiny)
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match="no image is set; call set_image"):
        use(predictor)


BAD_EMBEDDINGS = {
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), r"shape \[1, 8, 8, 32\], got \(1, 32, 8, 8\)"),
    "two": (lambda x: x.repeat(2, 0), r"shape \[1, 8, 8, 32\], got \(2, 8, 8, 32\)"),
    "another side": (lambda x: x[:, :7], r"shape \[1, 8, 8, 32\], got \(1, 7, 8, 32\)"),
    "nan": (lambda x: x * np.nan, "embedding has NaN or infinite"),
    "inf": (lambda x: x + np.inf, "embedding has NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD_EMBEDDINGS)
def test_bad_embedding(predictor, embedding, name):
    make, message = BAD_EMBEDDINGS[name]
    with pytest.raises(ValueError, match=message):
        predictor.set_image_embedding(make(np.asarray(embedding)), (30, 40))
    assert predictor.original_size == (HEIGHT, WIDTH)
    assert_usable(predictor)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (5,), (5, 5, 3), None, (np.nan, 5), (1000, 1), (1, 1000)])
def test_bad_original_size(predictor, embedding, size):
    with pytest.raises(ValueError, match=r"original_size|too narrow"):
        predictor.set_image_embedding(embedding, size)
    assert predictor.original_size == (HEIGHT, WIDTH)


def test_embedding_without_batch_axis(predictor, embedding):
    predictor.set_image_embedding(np.asarray(embedding)[0], (HEIGHT, WIDTH))
    assert_usable(predictor)


@pytest.fixture(scope="module")
def two_images(tiny, photo):
    predictor = SamPredictor(*tiny)
    predictor.set_image_batch([photo, photo[:30, :40]])
    return predictor


def test_predict_when_several_images_are_set(two_images):
    with pytest.raises(RuntimeError, match="2 images are set: use predict_batch"):
        two_images.predict(**POINT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"point_coords_batch": [[[5, 5]]], "point_labels_batch": [[1]]},
            "point_coords_batch has 1 entries for 2 images",
        ),
        (
            {"point_coords_batch": [[[5, 5]]] * 2, "point_labels_batch": [[1]]},
            "point_labels_batch has 1 entries for 2 images",
        ),
        ({"box_batch": [[1, 2, 3, 4]] * 3}, "box_batch has 3 entries for 2 images"),
        ({"mask_input_batch": []}, "mask_input_batch has 0 entries for 2 images"),
        ({}, "no prompt was given"),
        ({"box_batch": [[1, 2, 3, 4], None]}, "no prompt was given"),
        (
            {"point_coords_batch": [[[50, 5]]] * 2, "point_labels_batch": [[1]] * 2},
            r"point 0, \(50, 5\), lies outside the image of width 40, height 30",
        ),
    ],
)
def test_predict_batch_with_bad_entries(two_images, given, message):
    with pytest.raises(ValueError, match=message):
        two_images.predict_batch(**given)


def test_background_alone_is_warned_of(predictor):
    with pytest.warns(UserWarning, match="the points are all background, without a box or a mask"):
        predictor.predict([[5, 5]], [0])
    with pytest.warns(UserWarning, match="the points of prompt 1 are all background"):
        predictor.predict([[[5, 5]], [[6, 6]]], [[1], [0]])
    predictor.predict([[5, 5]], [0], box=[1, 2, 30, 40])
    predictor.predict([[5, 5]], [0], mask_input=ZEROS)


def test_binary_masks_are_not_taken_for_logits(predictor):
    """At low resolution or the photo's, as booleans or numbers: all are the same prompt, a mask of the left half."""
    left = np.zeros((LOW_RES, LOW_RES), bool)
    left[:, : LOW_RES // 2] = True
    of_photo = np.zeros((HEIGHT, WIDTH), bool)
    of_photo[:, : WIDTH // 2] = True
    covered = np.zeros((LOW_RES, LOW_RES), np.float32)
    covered[: LOW_RES * HEIGHT // WIDTH, : LOW_RES // 2] = 1
    covered[LOW_RES * HEIGHT // WIDTH, : LOW_RES // 2] = LOW_RES * HEIGHT / WIDTH % 1  # 60 of 90 rows: 21 and a third
    for forms, logits in (
        ((left[None], left[None] * np.uint8(255), left[None] * 1.0, left), np.where(left, 10, -10)),
        ((of_photo[None], of_photo[None] * 255, of_photo, of_photo * 1.0), 20 * covered - 10),
    ):
        expected = predictor.predict([[5, 5]], [1], mask_input=logits[None], return_logits=True)
        for form in forms:
            found = predictor.predict([[5, 5]], [1], mask_input=form, return_logits=True)
            np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
    empty = predictor.predict([[5, 5]], [1], mask_input=left[None] & False, return_logits=True)
    zeros = predictor.predict([[5, 5]], [1], mask_input=ZEROS, return_logits=True)
    assert np.abs(empty[2] - zeros[2]).max() > 1e-2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.ones((1, 10, 10), bool),
            r"a binary mask_input must have the photo's size \(60, 90\) or be low-res, \(32",
        ),
        (np.full((HEIGHT, WIDTH), 0.5), "mask_input must hold low-res logits"),
        (np.ones((2, HEIGHT, WIDTH), bool), "mask_input must hold low-res logits"),
    ],
)
def test_masks_of_no_known_form(predictor, mask, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict([[5, 5]], [1], mask_input=mask)

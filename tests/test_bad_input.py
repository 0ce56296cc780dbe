import re

import jax
import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import Prompts, Sam, SamPredictor, checkpoint, cli, reparam, transforms

HEIGHT, WIDTH = 60, 90
POINT = {"point_coords": [[20, 30]], "point_labels": [1]}


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def embedding(tiny, photo):
    predictor = SamPredictor(*tiny)
    predictor.set_image(photo)
    return predictor.get_image_embedding()


@pytest.fixture
def predictor(tiny, embedding):
    """With the photo set."""
    predictor = SamPredictor(*tiny)
    predictor.set_image_embedding(embedding, (HEIGHT, WIDTH))
    return predictor


def assert_usable(predictor):
    """The photo is still set, and it gives one prompt's masks without NaN."""
    masks, iou, low_res = predictor.predict(**POINT)
    assert masks.shape == (3, HEIGHT, WIDTH)
    assert np.isfinite(iou).all()
    assert np.isfinite(low_res).all()


# Image files


def saved(folder, image, name, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(folder / name, **options)
    return folder / name


def test_empty_image_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg is not an image"):
        transforms.load_image(tmp_path / "empty.jpg")


def test_file_that_is_no_image(tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo\n" * 100)
    with pytest.raises(ValueError, match=r"text\.jpg is not an image"):
        transforms.load_image(tmp_path / "text.jpg")


@pytest.mark.parametrize("path", ["missing.jpg", "."])
def test_no_image_file(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no image at {tmp_path / path}")):
        transforms.load_image(tmp_path / path)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.ppm", "cut.tif"])
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_truncated_image(tmp_path, photo, name, fraction):
    path = saved(tmp_path, photo, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=re.escape(name)):
        transforms.load_image(path)


def test_damaged_image_header(tmp_path):
    (tmp_path / "damaged.ppm").write_bytes(b"P6\n40 z0\n255\n" + bytes(4800))
    with pytest.raises(ValueError, match=r"damaged\.ppm is truncated or damaged"):
        transforms.load_image(tmp_path / "damaged.ppm")


def test_more_pixels_than_pillow_accepts(tmp_path, photo, monkeypatch):
    path = saved(tmp_path, photo, "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"huge\.png"):
        transforms.load_image(path)


def test_plain_image_is_unchanged(tmp_path, photo):
    np.testing.assert_array_equal(transforms.load_image(saved(tmp_path, photo, "photo.png")), photo, strict=True)


def test_grayscale(tmp_path, photo):
    gray = photo[..., 0]
    found = transforms.load_image(saved(tmp_path, gray, "gray.png"))
    np.testing.assert_array_equal(found, np.stack([gray] * 3, -1), strict=True)


def test_grayscale_with_alpha(tmp_path, photo):
    found = transforms.load_image(saved(tmp_path, photo[..., :2], "la.png"))
    np.testing.assert_array_equal(found, np.stack([photo[..., 0]] * 3, -1), strict=True)


def test_alpha_is_dropped(tmp_path, photo):
    alpha = photo[..., :1] // 128 * 255
    found = transforms.load_image(saved(tmp_path, np.concatenate([photo, alpha], -1), "rgba.png"))
    np.testing.assert_array_equal(found, photo, strict=True)


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 128])], ids=["opaque", "one colour", "alpha table"])
def test_palette(tmp_path, transparency):
    colours = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230]], np.uint8)
    index = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    found = transforms.load_image(saved(tmp_path, image, "palette.png", **options))
    np.testing.assert_array_equal(found, colours[index], strict=True)


def test_one_bit(tmp_path, photo):
    bits = photo[..., 0] > 127
    found = transforms.load_image(saved(tmp_path, bits, "bits.png"))
    np.testing.assert_array_equal(found, np.where(bits[..., None], 255, 0).repeat(3, -1).astype(np.uint8), strict=True)


@pytest.mark.parametrize(("name", "order"), [("deep.png", "<"), ("deep.tif", "<"), ("deep.tif", ">")])
def test_sixteen_bit_grayscale_is_scaled(tmp_path, name, order):
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], f"{order}u2")
    found = transforms.load_image(saved(tmp_path, values, name))
    expected = np.array([[0, 0, 1, 1], [127, 128, 254, 255]], np.uint8)
    np.testing.assert_array_equal(found, np.stack([expected] * 3, -1), strict=True)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_32_bit_pixels(tmp_path, photo, dtype, mode):
    path = saved(tmp_path, photo[..., 0].astype(dtype), "wide.tif")
    with pytest.raises(ValueError, match=rf"wide\.tif has 32-bit pixels \(mode {mode}\)"):
        transforms.load_image(path)


def test_cmyk(tmp_path):
    ink = np.zeros((32, 48, 4), np.uint8)
    ink[:, :16, 0], ink[:, 16:32, 1], ink[:, 32:, 3] = 255, 255, 255
    path = saved(tmp_path, Image.frombytes("CMYK", (48, 32), ink.tobytes()), "cmyk.jpg", quality=100, subsampling=0)
    found = transforms.load_image(path)
    assert found.shape == (32, 48, 3)
    for column, colour in ((8, (0, 255, 255)), (24, (255, 0, 255)), (40, (0, 0, 0))):
        np.testing.assert_allclose(found[16, column], colour, atol=6)


ORIENTATIONS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: np.rot90(stored, 2),
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(tmp_path, orientation):
    corners = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [250, 250, 10]]], np.uint8)
    stored = corners.repeat(16, 0).repeat(32, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = transforms.load_image(saved(tmp_path, stored, "phone.jpg", exif=exif, quality=100, subsampling=0))
    assert found.shape == ((64, 32, 3) if orientation > 4 else (32, 64, 3))
    np.testing.assert_allclose(found.astype(int), ORIENTATIONS[orientation](stored), atol=6)


def test_image_of_one_pixel(tmp_path, tiny):
    path = saved(tmp_path, np.array([[[200, 100, 50]]], np.uint8), "pixel.png")
    predictor = SamPredictor(*tiny)
    predictor.set_image(transforms.load_image(path))
    masks, iou, low_res = predictor.predict([[0.5, 0.5]], [1], return_logits=True)
    assert predictor.original_size == (1, 1)
    assert masks.shape == (3, 1, 1)
    assert np.isfinite(masks).all()
    assert np.isfinite(iou).all()
    assert np.isfinite(low_res).all()


# Arrays given as images

BAD_IMAGES = {
    "grayscale": (lambda image: image[..., 0], r"grayscale, shape \(60, 90\)"),
    "alpha": (lambda image: np.dstack([image, image[..., 0]]), r"alpha channel, shape \(60, 90, 4\)"),
    "float": (lambda image: image / np.float32(255), "must be uint8 .* got float32"),
    "uint16": (lambda image: image.astype(np.uint16), "must be uint8 .* got uint16"),
    "bool": (lambda image: image > 127, "must be uint8 .* got bool"),
    "no rows": (lambda image: image[:0], r"empty, shape \(0, 90, 3\)"),
    "no columns": (lambda image: image[:, :0], r"empty, shape \(60, 0, 3\)"),
    "batch": (lambda image: image[None], r"shape \[H, W, 3\], got \(1, 60, 90, 3\)"),
    "channels first": (lambda image: image.transpose(2, 0, 1), r"shape \[H, W, 3\], got \(3, 60, 90\)"),
    "two channels": (lambda image: image[..., :2], r"shape \[H, W, 3\], got \(60, 90, 2\)"),
    "list": (lambda image: image.tolist(), "must be a NumPy array .* got list"),
    "path": (lambda image: "photo.jpg", "must be a NumPy array .* got str"),
    "none": (lambda image: None, "must be a NumPy array .* got NoneType"),
    "Pillow": (lambda image: Image.fromarray(image), "must be a NumPy array .* got Image"),
    "too narrow": (lambda image: np.zeros((1000, 1, 3), np.uint8), r"too narrow .*128 pixels: shape \(1000, 1, 3\)"),
    "too flat": (lambda image: np.zeros((1, 1000, 3), np.uint8), r"too narrow .*128 pixels: shape \(1, 1000, 3\)"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_array(predictor, embedding, photo, name):
    make, message = BAD_IMAGES[name]
    with pytest.raises(ValueError, match=message):
        predictor.set_image(make(photo))
    assert predictor.original_size == (HEIGHT, WIDTH)
    assert (predictor.get_image_embedding() == embedding).all()
    assert_usable(predictor)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_array_among_several(predictor, embedding, photo, name):
    make, message = BAD_IMAGES[name]
    with pytest.raises(ValueError, match=message):
        predictor.set_image_batch([photo, make(photo)])
    assert (predictor.get_image_embedding() == embedding).all()


def test_no_images(predictor):
    with pytest.raises(ValueError, match="no images were given"):
        predictor.set_image_batch([])
    assert_usable(predictor)


@pytest.mark.parametrize("image_format", ["XYZ", "rgb", "RGBA"])
def test_unknown_image_format(predictor, photo, image_format):
    with pytest.raises(ValueError, match=f"image_format must be RGB or BGR, got '{image_format}'"):
        predictor.set_image(photo, image_format)
    assert_usable(predictor)


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
    "text": ({"point_coords": "ab", "point_labels": [1]}, "point_coords is not an array of numbers"),
    "scalar": ({"point_coords": 5, "point_labels": 1}, "point_coords"),
    "one axis": ({"point_coords": [5, 5], "point_labels": [1]}, r"point_coords must have shape \[N, 2\]"),
    "three coordinates": ({"point_coords": [[5, 5, 5]], "point_labels": [1]}, r"point_coords must have.*got \(1, 3\)"),
    "four axes": ({"point_coords": np.zeros((1, 1, 1, 2)), "point_labels": [[[1]]]}, "point_coords must have shape"),
    "ragged": ({"point_coords": [[5, 5], [5]], "point_labels": [1, 1]}, "point_coords is not an array of numbers"),
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
    "no boxes": ({"box": np.zeros((0, 4))}, r"box must have shape .* got \(0, 4\)"),
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
    "box a text": ({"box": "1,2,3,4"}, "box is not an array of numbers"),
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


# The model


@pytest.mark.parametrize("shape", [(128, 128, 3), (1, 128, 128), (1, 3, 128, 128), (1, 64, 128, 3), (1, 128, 128, 4)])
def test_encode_with_images_of_another_shape(tiny, tiny_train, shape):
    message = re.escape(f"images must have shape [B, 128, 128, 3] for this model, got {shape}")
    with pytest.raises(ValueError, match=message):
        tiny[0].encode(tiny[1], np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=message):
        tiny_train[0].encode_train(tiny_train[1], np.zeros(shape, np.float32))


def prompts(coords=(1, 2, 3, 2), labels=(1, 2, 3), valid=(1, 2, 3), boxes=None, masks=None):
    fields = [np.zeros(coords, np.float32), np.zeros(labels, np.int32), np.ones(valid, bool)]
    optional = [None if shape is None else np.zeros(shape, np.float32) for shape in (boxes, masks)]
    return Prompts(*fields, *optional)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"coords": (2, 3, 2)}, "point_coords must have shape [1, P, N, 2], got (2, 3, 2)"),
        ({"coords": (2, 2, 3, 2)}, "point_coords must have shape [1, P, N, 2], got (2, 2, 3, 2)"),
        ({"coords": (1, 2, 3, 3)}, "point_coords must have shape [1, P, N, 2], got (1, 2, 3, 3)"),
        (
            {"labels": (1, 2, 4)},
            "point_labels must have shape (1, 2, 3) beside point_coords (1, 2, 3, 2), got (1, 2, 4)",
        ),
        ({"valid": (1, 1, 3)}, "point_valid must have shape (1, 2, 3) beside point_coords (1, 2, 3, 2), got (1, 1, 3)"),
        ({"boxes": (1, 1, 4)}, "boxes must have shape (1, 2, 4) beside point_coords (1, 2, 3, 2), got (1, 1, 4)"),
        ({"masks": (1, 2, 64, 64)}, "masks must have shape (1, 2, 32, 32) beside point_coords (1, 2, 3, 2), got"),
    ],
)
def test_decode_with_prompts_that_do_not_fit(tiny, embedding, shapes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny[0].decode(tiny[1], embedding, prompts(**shapes))


@pytest.mark.parametrize("shape", [(8, 8, 32), (1, 32, 8, 8), (1, 8, 8, 256), (2, 8, 9, 32)])
def test_decode_with_embeddings_of_another_shape(tiny, shape):
    message = re.escape(f"embeddings must have shape [B, 8, 8, 32] for this model, got {shape}")
    with pytest.raises(ValueError, match=message):
        tiny[0].decode(tiny[1], np.zeros(shape, np.float32), prompts())


def test_params_of_the_other_form(tiny, tiny_train):
    images = np.zeros((1, 128, 128, 3), np.float32)
    with pytest.raises(ValueError, match="these are training-form params; fuse them"):
        tiny[0].encode(tiny_train[1], images)
    with pytest.raises(ValueError, match=r'the training form needs params\["batch_stats"\]'):
        tiny_train[0].encode(tiny[1], images)
    with pytest.raises(ValueError, match="encode_train needs the training form"):
        tiny[0].encode_train(tiny[1], images)


def test_fuse_twice(tiny):
    with pytest.raises(reparam.ReparamError, match="no batch_stats: they are in deploy form already"):
        reparam.fuse(tiny[1])


@pytest.mark.parametrize("name", ["nano", "", "TINY", None])
def test_unknown_preset(name):
    with pytest.raises(ValueError, match=f"unknown preset {name!r}; known presets: repvit_sam, .*tiny"):
        Sam.from_preset(name)


@pytest.mark.parametrize("image_size", [0, -16, 8, 100, 1000, 128.0])
def test_bad_image_size(image_size):
    with pytest.raises(ValueError, match=f"image_size must be a positive multiple of 16, got {image_size}"):
        Sam.from_preset("tiny", image_size=image_size)


@pytest.mark.parametrize("dtype", ["float16", "f32", None, np.float32])
def test_unknown_dtype(dtype):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got"):
        Sam.from_preset("tiny", dtype=dtype)


@pytest.mark.parametrize("form", ["fused", "", None])
def test_unknown_form(form):
    with pytest.raises(ValueError, match=f"form must be one of train, deploy, got {form!r}"):
        Sam.from_preset("tiny", form=form)


# repvit-sam segment


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(path, jax.tree.map(np.asarray, tiny[1]), checkpoint.Metadata(tiny[0].config, "deploy"))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to segment: give --point or --box"),
        (["--point", "5"], "--point 5: expected X,Y or X,Y,LABEL"),
        (["--point", "5,6,1,1"], "--point 5,6,1,1: expected X,Y or X,Y,LABEL"),
        (["--point", "5;6"], "--point 5;6: expected X,Y or X,Y,LABEL"),
        (["--point", "5,"], "--point 5,: expected X,Y or X,Y,LABEL"),
        (["--point", ""], "--point : expected X,Y or X,Y,LABEL"),
        (["--point", "5,6", "--point", "a,b"], "--point a,b: expected X,Y or X,Y,LABEL"),
        (["--box", "1,2,3"], "--box 1,2,3: expected X1,Y1,X2,Y2"),
        (["--box", "1,2,3,four"], "--box 1,2,3,four: expected X1,Y1,X2,Y2"),
        (["--point", "5,6", "--out", "mask.jpg"], "mask.jpg: masks and overlays are written as .png"),
        (["--point", "5,6", "--overlay", "overlay"], "overlay: masks and overlays are written as .png"),
        (["--point", "5,6", "--out", "none/mask.png"], "none/mask.png: there is no folder none"),
        (["--point", "5,6", "--overlay", "none/over.png"], "none/over.png: there is no folder none"),
        (["--point", "5,6", "--weights", "none.safetensors"], "no checkpoint at none.safetensors"),
        (["--point", "5,6", "--weights", "photo.png"], "photo.png is not a safetensors file"),
        (["--point", "5,6,2"], "labels of --point are"),
        (["--point", "nan,6"], "point 0 is not finite"),
        (["--point", "-5,6"], "point 0, (-5, 6), lies outside the image of width 90, height 60"),
        (["--box", "30,2,1,40"], "the box is inverted"),
        (["--box", "-30,2,-1,40"], "the box, (-30, 2, -1, 40), lies outside"),
    ],
)
def test_command_fails(tmp_path, photo, weights, monkeypatch, capsys, arguments, message):
    saved(tmp_path, photo, "photo.png")
    if "--weights" not in arguments:
        arguments = [*arguments, "--weights", str(weights)]
    assert_command_fails(["photo.png", *arguments], message, tmp_path, monkeypatch, capsys)


def test_command_without_photo(tmp_path, weights, monkeypatch, capsys):
    arguments = ["none.png", "--point", "5,6", "--weights", str(weights)]
    assert_command_fails(arguments, "no image at none.png", tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("option", ["--out", "--overlay"])
def test_command_writes_into_no_folder(tmp_path, photo, weights, monkeypatch, capsys, option):
    saved(tmp_path, photo, "photo.png")
    (tmp_path / "folder.png").mkdir()
    arguments = ["photo.png", "--point", "5,6", "--weights", str(weights), option, "folder.png"]
    assert_command_fails(arguments, "", tmp_path, monkeypatch, capsys, anywhere="folder.png")


def assert_command_fails(arguments, message, folder, monkeypatch, capsys, anywhere=""):
    """The command ends with 1 and one line on stderr, and has written nothing into the folder."""
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["repvit-sam", "segment", *arguments])
    monkeypatch.setattr(SamPredictor, "warmup", lambda *_, **__: None)  # compilation ahead takes seconds
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(f"error: {message}")
    assert anywhere in errors
    assert errors.count("\n") == 1
    assert sorted(folder.iterdir()) == before

"""Image files and arrays: what is read, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import SamPredictor, transforms
from tests.repvit_sam_jax.bad_input.conftest import HEIGHT, WIDTH, assert_usable, saved


# Image files
def test_empty_image_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg is not an image"):
        transforms.load_image(tmp_path / "empty.jpg")


def test_file_that_is_no_image(tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo\n" * 100)
    with pytest.raises(ValueError, match=r"text\.jpg is not an image"):
        transforms.load_image(tmp_path / "text.jpg")


def test_no_image_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no image at {tmp_path / 'missing.jpg'}")):
        transforms.load_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is a folder, not an image")):
        transforms.load_image(tmp_path)


def test_more_pixels_than_allowed(tmp_path, photo):
    path = saved(tmp_path, photo, "photo.png")
    assert transforms.load_image(path, max_pixels=photo[..., 0].size).shape == photo.shape
    with pytest.raises(ValueError, match=r"photo\.png has 90 x 60 pixels, more than 5399; .*--max-pixels"):
        transforms.load_image(path, max_pixels=photo[..., 0].size - 1)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.ppm", "cut.tif"])
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_truncated_image(tmp_path, photo, name, fraction):
    path = saved(tmp_path, photo, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=re.escape(name)):
        transforms.load_image(path)


def test_file_that_may_not_be_read(tmp_path, photo, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # root, who runs tests in containers, may read anything
    with pytest.raises(PermissionError):
        transforms.load_image(saved(tmp_path, photo, "secret.png"))


def test_damaged_tags(tmp_path, photo):
    """Pillow fails on the EXIF of a photo whose pixels are whole, in a way of its own."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2020:01:01"  # a date, and its tag turned into a palette's, which is no text
    data = exif.tobytes().replace(b"\x01\x32\x00\x02", b"\x01\x40\x00\x02")
    assert data != exif.tobytes()
    Image.fromarray(photo).save(tmp_path / "tags.png", exif=data)
    with pytest.raises(ValueError, match=r"tags\.png is truncated or damaged"):
        transforms.load_image(tmp_path / "tags.png")


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


@pytest.mark.parametrize(
    ("name", "order"), [("deep.png", "<"), ("deep.tif", "<"), ("deep.tif", ">"), ("deep.pgm", "<")]
)
def test_sixteen_bit_grayscale_is_scaled(tmp_path, name, order):
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], f"{order}u2")
    found = transforms.load_image(saved(tmp_path, values, name))
    expected = np.array([[0, 0, 1, 1], [127, 128, 254, 255]], np.uint8)
    np.testing.assert_array_equal(found, np.stack([expected] * 3, -1), strict=True)


def test_twelve_bit_grayscale(tmp_path):
    """In a 16-bit file: nothing says that white is 4095, but all is nearly black, which a warning says."""
    values = np.array([[16, 100], [2000, 4095]], np.uint16)
    path = saved(tmp_path, values, "deep.tif")
    with pytest.warns(UserWarning, match=r"deep\.tif uses 16 to 4095 of 16-bit gray.*stretch=True"):
        assert transforms.load_image(path).max() == 16
    stretched = transforms.load_image(path, stretch=True)[..., 0]
    np.testing.assert_array_equal(stretched, [[0, 5], [124, 255]])
    constant = saved(tmp_path, np.full((2, 2), 7, np.uint16), "flat.tif")
    assert (transforms.load_image(constant, stretch=True) == 0).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero(tmp_path, bits):
    """TIFF's tag 262, which Pillow heeds at 8 bits and not at 16."""
    values = np.array([[0, 3], [40, 250]], np.uint8) if bits == 8 else np.array([[0, 771], [10280, 64250]], np.uint16)
    path = tmp_path / "negative.tif"
    Image.fromarray(values).save(path, tiffinfo={262: 0})
    if bits == 8:  # Pillow writes what it reads: the tag says that the stored numbers are inverted
        assert (np.asarray(Image.open(path)) == transforms.load_image(path)[..., 0]).all()
    else:
        np.testing.assert_array_equal(transforms.load_image(path)[..., 0], 255 - np.array([[0, 3], [40, 250]]))


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
    "none": (lambda image: None, "must be a NumPy array .* got NoneType"),
    "Pillow": (lambda image: Image.fromarray(image[..., 0].astype(np.int32)), "the image has 32-bit pixels"),
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


def test_several_images_are_named(predictor, photo):
    for images, message in (
        ([photo, photo[..., 0]], "image 1: the image is grayscale"),
        ([photo] * 5 + [np.zeros((1, 1000, 3), np.uint8)], "image 5: the image is too narrow"),
        (photo, "images must be a list of images, got an array .*; set_image takes one image"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.set_image_batch(images)


def test_no_images(predictor):
    with pytest.raises(ValueError, match="no images were given"):
        predictor.set_image_batch([])
    assert_usable(predictor)


@pytest.mark.parametrize("image_format", ["XYZ", "rgb", "RGBA"])
def test_unknown_image_format(predictor, photo, image_format):
    with pytest.raises(ValueError, match=f"image_format must be RGB or BGR, got '{image_format}'"):
        predictor.set_image(photo, image_format)
    assert_usable(predictor)


def test_what_people_hold(predictor, photo, tmp_path):
    """Paths, Pillow images and arrays of other libraries are the photo; BGR is a matter of arrays alone."""
    path = saved(tmp_path, photo, "photo.png")
    predictor.set_image(photo)
    expected = predictor.get_image_embedding()
    for image in (path, str(path), Image.open(path), Image.fromarray(photo).convert("RGBA"), jnp.asarray(photo)):
        predictor.set_image(image)
        assert (predictor.get_image_embedding() == expected).all()
    predictor.set_image(photo[..., ::-1], "BGR")
    assert (predictor.get_image_embedding() == expected).all()
    predictor.set_image(Image.open(path), "BGR")
    assert (predictor.get_image_embedding() == expected).all()
    with pytest.raises(FileNotFoundError, match="image 1: no image at missing"):
        predictor.set_image_batch([path, "missing.jpg"])

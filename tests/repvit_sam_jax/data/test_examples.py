"""One record, one example: its arrays, the choice of masks, and records that are damaged."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import transforms
from repvit_sam_jax.data import DamagedRecordError, ExampleConfig, Record, make_example, read_annotations
from repvit_sam_jax.data.masks import to_low_res
from repvit_sam_jax.inference.rle import counts_to_mask, mask_to_counts
from tests.helpers.photos import annotation, annotations, jpeg, photo_and_masks


def record(number=0, masks=None):
    image, own = photo_and_masks(number)
    return Record("a.jpg", jpeg(image), annotations(image.shape[:2], *(own if masks is None else masks)))


def decoded(photo: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(photo)))


@pytest.mark.parametrize("number", range(5))
def test_image_is_resized_and_padded(number):
    given = record(number)
    found = make_example(given, ExampleConfig(32))
    assert set(found) == {"image", "size"}
    resized = transforms.resize_longest_side(decoded(given.photo), 32)
    height, width = found["size"]
    assert found["size"].dtype == np.int32
    np.testing.assert_array_equal(found["image"][:height, :width], resized)
    assert not found["image"][height:].any()
    assert not found["image"][:, width:].any()
    expected = transforms.preprocess(decoded(given.photo), 32)
    normalised = transforms.normalize(found["image"][None], found["size"][None])
    np.testing.assert_allclose(normalised, expected, rtol=0, atol=1e-6)


def test_photos_are_turned_as_their_exif_says():
    image, _ = photo_and_masks(0)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(file, "PNG", exif=exif)
    found = make_example(Record("a.png", file.getvalue(), None), ExampleConfig(64))
    np.testing.assert_array_equal(found["image"][:64, :43], transforms.resize_longest_side(np.rot90(image, -1), 64))


def test_masks_boxes_and_areas():
    """The first K in order, and padding for the rest."""
    _, masks = photo_and_masks(1)
    found = make_example(record(1), ExampleConfig(32, num_masks=7))
    assert {name: (value.shape, str(value.dtype)) for name, value in found.items() if name != "image"} == {
        "size": ((2,), "int32"),
        "masks": ((7, 8, 8), "bool"),
        "boxes": ((7, 4), "float32"),
        "areas": ((7,), "float32"),
        "valid": ((7,), "bool"),
    }
    assert found["valid"].tolist() == [True] * 5 + [False] * 2
    for i, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        box = np.array([x.min(), y.min(), x.max(), y.max()])
        np.testing.assert_array_equal(found["boxes"][i], transforms.apply_boxes(box, mask.shape, 32))
        np.testing.assert_array_equal(found["masks"][i], to_low_res(mask_to_counts(mask), mask.shape, 32))
        assert found["areas"][i] == mask.sum()
    for name in ("masks", "boxes", "areas"):
        assert not found[name][5:].any()
    assert make_example(record(1), ExampleConfig(32, num_masks=None))["areas"].tolist() == found["areas"][:5].tolist()
    assert make_example(record(1), ExampleConfig(32, num_masks=2))["areas"].tolist() == found["areas"][:2].tolist()
    for count, places in ((1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (None, range(5))):
        spread = make_example(record(1), ExampleConfig(32, num_masks=count, spread=True))
        assert spread["areas"].tolist() == found["areas"][list(places)].tolist()


def test_choice_is_the_generators():
    config = ExampleConfig(32, num_masks=3, flip_probability=0.5)
    make = lambda seed: make_example(record(2), config, np.random.default_rng(seed))
    first, again = make(1), make(1)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert len({tuple(make(seed)["areas"]) for seed in range(20)}) > 10
    for seed in range(20):
        assert len(set(make(seed)["areas"])) == 3, "without replacement"


def test_flip_is_the_example_of_the_mirrored_photo():
    """Of a PNG, which has no compression that would differ."""
    image, masks = photo_and_masks(3)
    mirrored = [mask[:, ::-1] for mask in masks]
    files = []
    for pixels in (image, image[:, ::-1]):
        files.append(io.BytesIO())
        Image.fromarray(pixels).save(files[-1], "PNG")
    plain, other = (
        Record("a.png", file.getvalue(), annotations(image.shape[:2], *of))
        for file, of in zip(files, (masks, mirrored), strict=True)
    )
    flips = ExampleConfig(32, num_masks=5, flip_probability=1.0)
    keeps = ExampleConfig(32, num_masks=5)
    found, expected = (make_example(*of, np.random.default_rng(0)) for of in ((plain, flips), (other, keeps)))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    unflipped = make_example(plain, flips)
    np.testing.assert_array_equal(unflipped["image"], make_example(plain, keeps)["image"])


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, -1.0])
def test_masks_are_drawn_by_area(exponent):
    """One mask of three, with areas of 4, 64 and 256: frequencies within five deviations."""
    sizes = np.array([8, 16, 32])
    masks = []
    for side in sizes:
        masks.append(np.zeros((64, 64), bool))
        masks[-1][:side, :side] = True
    weights = (sizes.astype(float) ** 2) ** -exponent
    expected = weights / weights.sum()
    given = Record("a.jpg", jpeg(np.zeros((64, 64, 3), np.uint8)), annotations((64, 64), *masks))
    config = ExampleConfig(64, num_masks=1, area_exponent=exponent)
    rng, draws = np.random.default_rng(0), 600
    areas = [float(make_example(given, config, rng)["areas"][0]) for _ in range(draws)]
    found = np.array([areas.count(float(side**2)) for side in sizes]) / draws
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 5 * deviation + 1e-9).all(), (found, expected)


def test_masks_without_a_pixel_in_the_frame_come_last():
    """They are chosen only where there is no other, and then have a box and an area, but no pixels."""
    speck, line, large, dot, empty = np.zeros((5, 64, 64), bool)
    speck[30, 30] = True
    line[:, 9] = True
    large[10:40, 10:40] = True
    dot[8:10, 20:24] = True  # half of one low-resolution pixel
    photo = jpeg(np.zeros((64, 64, 3), np.uint8))
    config = ExampleConfig(64, num_masks=4, area_exponent=1.0)
    for order in ([speck, line, large, dot, empty], [empty, dot, large, line, speck]):
        for rng in (None, np.random.default_rng(0)):
            found = make_example(Record("a.jpg", photo, annotations((64, 64), *order)), config, rng)
            assert sorted(found["areas"]) == [0, 0, 8, 900]
            assert found["valid"].tolist() == [True, True, False, False]
            assert found["masks"][:2].any((1, 2)).all()
    found = make_example(Record("a.jpg", photo, annotations((64, 64), speck, empty, line)), config)
    assert found["valid"].tolist() == [True, True, False, False]
    assert found["boxes"][:2].tolist() == [[30, 30, 30, 30], [9, 0, 9, 63]]
    assert not found["masks"].any()


def test_polygons_become_masks():
    image, _ = photo_and_masks(0)
    text = json.dumps(
        {
            "image": {"height": 40, "width": 60},
            "annotations": [{"segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}, annotation(np.ones((40, 60), bool))],
        }
    )
    found = make_example(Record("a.jpg", jpeg(image), text.encode()), ExampleConfig(64, num_masks=2))
    assert found["areas"].tolist() == [400, 2400]


def test_annotations_as_bitmaps():
    image, masks = photo_and_masks(4)
    size = image.shape[:2]
    found = read_annotations(annotations(size, *masks), size)
    for counts, mask in zip(found, masks, strict=True):
        np.testing.assert_array_equal(counts_to_mask(counts, size), mask)


GOOD = record()
SIZE = {"height": 40, "width": 60}
BAD_ANNOTATIONS = [
    (None, "a.jpg: no annotations"),
    (b"", "a.jpg: Expecting value"),
    (GOOD.annotations[:-20], "a.jpg: "),
    (b"\xff\xfe\xfd", "a.jpg: "),
    (b"[]", "a.jpg: damaged annotations: TypeError"),
    (b"{}", "a.jpg: damaged annotations: KeyError: 'image'"),
    (json.dumps({"image": SIZE}).encode(), "a.jpg: damaged annotations: KeyError: 'annotations'"),
    (json.dumps({"image": SIZE, "annotations": [{}]}).encode(), "a.jpg: damaged annotations: KeyError: 'segmentation'"),
    (json.dumps({"image": SIZE, "annotations": []}).encode(), "a.jpg: annotations without masks"),
    (annotations((40, 60), np.zeros((40, 60), bool)), "a.jpg: annotations without masks"),
    (annotations((60, 40), np.ones((60, 40), bool)), "a.jpg: annotations of a photo of 60 x 40 pixels"),
    (annotations((40, 60), np.ones((60, 40), bool)), "a.jpg: a mask of size \\[60, 40\\]"),
]


@pytest.mark.parametrize(("text", "message"), BAD_ANNOTATIONS)
def test_damaged_annotations(text, message):
    damaged = Record("a.jpg", GOOD.photo, text)
    with pytest.raises(DamagedRecordError, match=message):
        make_example(damaged, ExampleConfig(32, num_masks=1))
    make_example(damaged, ExampleConfig(32))  # nobody asks for them


@pytest.mark.parametrize("photo", [b"", b"text", GOOD.photo[:300], GOOD.photo[: len(GOOD.photo) // 2]])
def test_damaged_photos(photo):
    with pytest.raises(DamagedRecordError, match=r"a\.jpg"):
        make_example(Record("a.jpg", photo, GOOD.annotations), ExampleConfig(32, num_masks=1))


def test_photo_too_narrow():
    narrow = Record("a.jpg", jpeg(np.zeros((2, 900, 3), np.uint8)), None)
    with pytest.raises(DamagedRecordError, match=r"a\.jpg: the image is too narrow"):
        make_example(narrow, ExampleConfig(32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 100}, "multiple of 16, got 100"),
        ({"num_masks": -1}, "num_masks must not be negative, got -1"),
        ({"flip_probability": 1.5}, "from 0 to 1, got 1.5"),
    ],
)
def test_bad_configs(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExampleConfig(**arguments)

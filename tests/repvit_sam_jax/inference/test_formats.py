"""Files of masks, read back by pycocotools and by a plain rasteriser."""

import json
import random

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from repvit_sam_jax.inference import formats
from repvit_sam_jax.inference.polygons import joined, mask_to_polygons
from tests.helpers.measures import rasterised
from tests.helpers.photos import smooth_mask
from tests.helpers.terminal import read

SIZE = (37, 53)


def ring(size):
    """A frame along the edges of the photo, with a part in its hole."""
    mask = np.ones(size, bool)
    mask[1:-1, 1:-1] = False
    mask[5:9, 4:7] = True
    return mask


def one_pixel(size, at):
    mask = np.zeros(size, bool)
    mask[at] = True
    return mask


@pytest.fixture(scope="module")
def masks():
    """Holes, many parts, single pixels, all edges, corners that touch; the last one is empty."""
    rng = np.random.default_rng(1)
    y, x = np.indices(SIZE)
    return [
        smooth_mask(rng, SIZE),
        rng.random(SIZE) < 0.5,
        ring(SIZE),
        one_pixel(SIZE, (0, 0)),
        one_pixel(SIZE, (-1, -1)),
        (y + x) % 2 == 0,
        np.ones(SIZE, bool),
        np.zeros(SIZE, bool),
    ]


@pytest.fixture(scope="module")
def found(masks):
    records = [formats.answer_to(mask, 0.5, [(3.0, 4.0)], [1], None) for mask in masks]
    return formats.found_in("a photo.jpg", SIZE, records)


def plain_fill(corners, size):
    """Pixels whose centres are inside of a polygon, by the even-odd rule."""
    y, x = (axis + 0.5 for axis in np.indices(size))
    inside = np.zeros(size, bool)
    points = np.reshape(corners, (-1, 2))
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


@pytest.mark.parametrize("form", ["coco", "polygons"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_pycocotools_reads_the_masks(found, masks, form, tmp_path, capsys):
    (tmp_path / "a.json").write_bytes(formats.content(found, form))
    coco = COCO(tmp_path / "a.json")
    capsys.readouterr()
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == len(masks)
    for mask, annotation in zip(masks, annotations, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
        if len(rows):
            expected = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert annotation["bbox"] == expected
        assert isinstance(annotation["segmentation"], list) == (form == "polygons" and mask.any())
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "object"}]


def test_the_file_of_a_photo_as_in_sa_1b(found, masks):
    content = json.loads(formats.content(found, "rle"))
    assert content["image"] == {"file_name": "a photo.jpg", "width": SIZE[1], "height": SIZE[0]}
    for mask, record in zip(masks, content["annotations"], strict=True):
        np.testing.assert_array_equal(rasterised(record["segmentation"], SIZE), mask)
        assert record["point_coords"] == [[3.0, 4.0]]


def read_label(line):
    number, *shares = line.split()
    return int(number), (np.reshape([float(v) for v in shares], (-1, 2)) * SIZE[::-1]).ravel().tolist()


def test_labels_of_yolo_are_one_polygon_a_mask(found, masks):
    """Its area is the mask's, holes and parts too, to pycocotools and to a plain rasteriser."""
    lines = formats.content(found, "yolo").decode().splitlines()
    assert len(lines) == len(masks) - 1  # but the empty one
    for mask, line in zip(masks, lines, strict=False):
        number, corners = read_label(line)
        assert number == 0
        np.testing.assert_array_equal(rasterised([corners], SIZE), mask)
        np.testing.assert_array_equal(plain_fill(np.round(corners), SIZE), mask)


@pytest.mark.parametrize("seed", range(20))
def test_joined_polygons_of_random_masks(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 40, 2))
    mask = rng.random(size) < rng.random() if seed % 2 else smooth_mask(rng, size)
    polygons = mask_to_polygons(mask)
    random.Random(seed).shuffle(polygons)
    corners = joined(polygons)
    np.testing.assert_array_equal(plain_fill(corners, size), mask)
    if corners:
        np.testing.assert_array_equal(rasterised([corners], size), mask)
        assert len(corners) == sum(map(len, polygons)) + 4 * (len(polygons) - 1)


def test_png(masks, tmp_path):
    for mask in masks:
        found = formats.found_in("a.jpg", SIZE, [formats.answer_to(mask, 0.5, [], [], (1, 2, 3, 4))])
        (tmp_path / "a.png").write_bytes(formats.content(found, "png"))
        np.testing.assert_array_equal(read(tmp_path / "a.png"), mask)


def test_folders(masks, tmp_path):
    """Two photos and two classes."""
    records = [formats.answer_to(mask, 0.5, [], [], None) | {"category_id": 1 + i % 2} for i, mask in enumerate(masks)]
    found = {
        "a": formats.found_in("a.jpg", SIZE, records),
        "b": formats.found_in("b.jpg", SIZE, [{**records[1], "stability_score": float("nan")}]),
        "c": formats.found_in("c.jpg", SIZE, []),
    }
    classes = ['cat: "a"', "Hündchen"]
    written = {
        form: formats.write_folder(tmp_path, found, form, classes, photos="../p") for form in ("png", "rle", "coco")
    }
    written["yolo"] = formats.write_folder(tmp_path, found, "yolo", classes)
    assert written == {"png": ["masks"], "rle": ["rle"], "coco": ["records.json"], "yolo": ["labels", "data.yaml"]}
    for i, mask in enumerate(masks):
        with Image.open(tmp_path / "masks" / "a" / f"mask_{i:04d}.png") as picture:
            np.testing.assert_array_equal(np.array(picture), mask)
    of_b = json.loads((tmp_path / "rle" / "b.json").read_text())["annotations"]
    assert [record["stability_score"] for record in of_b] == [None]
    content = json.loads((tmp_path / "records.json").read_text())
    assert content["info"] == {"photos": "../p"}
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1] * 8 + [2]
    assert [annotation["category_id"] for annotation in content["annotations"]] == [1, 2] * 4 + [2]
    assert [category["name"] for category in content["categories"]] == classes
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "train": "images",
        "val": "images",
        "names": classes,
    }
    lines = {name: (tmp_path / "labels" / f"{name}.txt").read_text().splitlines() for name in found}
    assert [int(line.split()[0]) for line in lines["a"]] == [0, 1, 0, 1, 0, 1, 0]
    assert [len(of_photo) for of_photo in lines.values()] == [7, 1, 0]

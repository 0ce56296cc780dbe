"""Photos and masks as pictures, in the ways in which people and this library name them."""

import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.data import DamagedRecordError, ExampleConfig, Subset, make_example, open_source
from repvit_sam_jax.data.pairs import read_masks
from repvit_sam_jax.inference import rle
from tests.helpers.photos import jpeg, photo_and_masks


def save(mask, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def masks_of(record):
    content = json.loads(record.annotations)
    size = content["image"]["height"], content["image"]["width"]
    return [rle.counts_to_mask(rle.read_segmentation(a["segmentation"], size), size) for a in content["annotations"]]


def label_map(masks):
    numbers = np.zeros(masks[0].shape, np.uint8)
    for number, mask in enumerate(masks, start=1):
        numbers[mask] = number
    return numbers


def test_names_of_masks(tmp_path):
    """One mask, several by number, a folder of them, and a label map; a photo that is called as another's mask."""
    photos, masks = tmp_path / "images", tmp_path / "masks"
    photos.mkdir()
    given = {}
    for number, name in enumerate(("one", "several", "folder", "map", "one_0", "bare")):
        photo, given[name] = photo_and_masks(0)[0], photo_and_masks(20 * number)[1]
        (photos / f"{name}.jpg").write_bytes(jpeg(photo))
    save(given["one"][0], masks / "one.png")
    save(given["one_0"][2], masks / "one_0.png")
    for i in range(3):
        save(given["several"][i], masks / f"several_{i}.png")
        save(given["folder"][i], masks / "folder" / f"mask_{i:04d}.png")
    Image.fromarray(label_map(given["map"])).save(masks / "map.png")
    save(given["bare"][0], masks / "nobody.png")
    (masks / "notes.txt").touch()
    numbers = label_map(given["map"])
    wanted = {
        **{"folder": given["folder"][:3], "map": [numbers == n for n in range(1, 6)], "one": given["one"][:1]},
        **{"one_0": given["one_0"][2:3], "several": given["several"][:3]},
    }
    for spec in (tmp_path, [photos, masks]):
        with pytest.warns(UserWarning, match="left out") as said:
            source = open_source(spec)
        texts = [str(warning.message) for warning in said]
        assert any("1 photo without masks" in text and "bare.jpg" in text for text in texts)
        assert any("1 mask without photos" in text and "nobody.png" in text for text in texts)
        assert [source[i].name for i in range(len(source))] == [str(photos / f"{name}.jpg") for name in wanted]
        for i, expected in enumerate(wanted.values()):
            np.testing.assert_array_equal(masks_of(source[i]), expected)
    example = make_example(source[4], ExampleConfig(64, 5))
    assert example["valid"].sum() == 3
    before = source.fingerprint
    save(given["one"][1], masks / "one.png")
    with pytest.warns(UserWarning, match="left out"):
        assert open_source(tmp_path).fingerprint != before
    with pytest.raises(FileNotFoundError, match=r"no photo of .* has a mask in .*such as STEM\.png"):
        open_source([masks / "folder", photos])


@pytest.mark.parametrize(
    ("numbers", "mode", "expected"),
    [
        ([[0, 255], [255, 0]], "L", [255]),
        ([[0, 1], [1, 0]], "L", [1]),
        ([[0, 3], [9, 0]], "P", [3, 9]),
        ([[0, 3], [255, 9]], "P", [3, 9]),
        ([[0, 300], [70, 0]], "I;16", [70, 300]),
        ([[0, 0], [0, 0]], "L", []),
    ],
)
def test_objects_of_a_picture(tmp_path, numbers, mode, expected):
    values = np.array(numbers, np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(values)
    if mode == "P":
        picture = Image.frombytes("P", values.shape[::-1], values.tobytes())
        picture.putpalette([7, 7, 7] * 256)
    picture.save(tmp_path / "mask.png")
    found = read_masks(tmp_path / "mask.png")
    np.testing.assert_array_equal(found, [values == number for number in expected] or np.zeros((0,)))


def test_pictures_that_are_no_masks(tmp_path):
    """Said when the photo is used, and one such photo does not end a run."""
    (tmp_path / "images").mkdir()
    photo, masks = photo_and_masks(0)
    for name in ("broken", "colours", "size", "smooth"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(jpeg(photo))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "broken.png").write_bytes(b"no picture")
    Image.fromarray(photo).save(tmp_path / "masks" / "colours.png")
    save(masks[0][1:], tmp_path / "masks" / "size.png")
    large = Image.fromarray(masks[0].astype(np.uint8) * 255).rotate(20, Image.Resampling.BICUBIC)
    large.resize((60, 40), Image.Resampling.BICUBIC).save(tmp_path / "masks" / "smooth.png")
    source = open_source(tmp_path)
    wanted = (
        r"broken\.png can't be read",
        r"colours\.png is in RGB",
        "39 x 60 pixels",
        r"smooth\.png has smooth",
    )
    for i, message in enumerate(wanted):
        with pytest.raises(DamagedRecordError, match=message):
            make_example(source[i], ExampleConfig(64, 5))


def test_subset(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(photo_and_masks(number)[0]))
    source = open_source(tmp_path)
    part = Subset(source, [3, 1])
    assert len(part) == 2
    assert [part[0], part[1]] == [source[3], source[1]]
    with pytest.raises(IndexError, match="record 2 of 2"):
        part[2]
    assert len({part.fingerprint, source.fingerprint, Subset(source, [1, 3]).fingerprint}) == 3

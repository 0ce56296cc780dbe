"""Annotated photos, and the command."""

import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.inference import formats
from tests.helpers.annotations import CLASSES, SIZES
from tests.helpers.photos import photo, smooth_mask
from tests.helpers.terminal import run


@pytest.fixture
def photos(tmp_path):
    """A folder with one below."""
    for name, size in SIZES.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(*size)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def masks():
    """Of each photo, each with the name of its class; holes, parts, a pixel, all."""
    rng = np.random.default_rng(3)
    found = {}
    for name, size in SIZES.items():
        pixel = np.zeros(size, bool)
        pixel[-1, -1] = True
        kinds = [smooth_mask(rng, size), rng.random(size) < 0.4, pixel, np.ones(size, bool)]
        found[name] = [] if name == "none.png" else [(CLASSES[i % 2], mask) for i, mask in enumerate(kinds)]
    return found


@pytest.fixture
def coco(photos, masks):
    """Beside the photos."""
    found = []
    for name, of_photo in masks.items():
        records = [formats.answer_to(mask, 0.5, [], [], None) for _, mask in of_photo]
        numbers = [CLASSES.index(label) + 1 for label, _ in of_photo]
        records = [{**record, "category_id": number} for record, number in zip(records, numbers, strict=True)]
        found.append(formats.found_in(name, SIZES[name], records))
    path = photos / "coco.json"
    path.write_text(json.dumps(formats.coco_file(found, CLASSES)))
    return path


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """The command; what it prints, and to where it says what it leaves out."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        run(monkeypatch, "convert", "annotations", *arguments)
        return capsys.readouterr()

    return call


@pytest.fixture
def fails(convert, capsys):
    """The command's one line of error; nothing is written."""

    def call(source, *arguments):
        with pytest.raises(SystemExit, match="1"):
            convert(source, "out.json", *arguments)
        out, errors = capsys.readouterr()
        assert out == ""
        assert errors.count("\n") == 1
        return errors.removeprefix("error: ").strip()

    return call

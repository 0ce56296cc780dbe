"""The commands of docs/formats.md, in the order in which they stand there, and its examples of files."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from repvit_sam_jax.inference import formats
from tests.helpers.annotations import block, brushed, labelme, shape, studio
from tests.helpers.photos import photo
from tests.helpers.processes import ROOT
from tests.helpers.terminal import run

PAGE = (ROOT / "docs" / "formats.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_commands(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "labelme"):
        (tmp_path / folder).mkdir()
    for name, size in {"photo.jpg": (60, 80), "photos/a.png": (37, 53), "photos/b.jpg": (60, 80)}.items():
        Image.fromarray(photo(*size)).save(tmp_path / name)
    triangle = shape("a", [[3, 2], [40, 8], [12, 30]])
    labelme(tmp_path / "labelme" / "a.json", [triangle], imagePath="../photos/a.png")
    studio(tmp_path / "export.json", [brushed(block(3, 4, 20, 30))])
    commands = [line for kind, text in BLOCKS for line in text.splitlines() if line.startswith("repvit-sam ")]
    assert len(commands) == 16
    for command in commands:
        quick = ["--points-per-side", 2] if "everything" in command.split()[1] else []
        run(monkeypatch, *shlex.split(command)[1:], *quick)
    assert capsys.readouterr().out.count("wrote ") == len(commands)
    assert len(list((tmp_path / "for_yolo" / "labels").iterdir())) == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_examples_of_files():
    """They are of the same mask."""
    expected = np.zeros((3, 4), bool)
    expected[1:, 1] = True
    of_photo, of_all = (json.loads(text) for kind, text in BLOCKS if kind == "json")
    for content in (of_photo, of_all):
        (record,) = content["annotations"]
        np.testing.assert_array_equal(coco.decode(record["segmentation"]), expected)
        assert record["area"] == 2
    found = formats.found_in("photo.jpg", (3, 4), of_photo["annotations"])
    assert formats.content(found, "yolo").decode() in [text for _, text in BLOCKS]
    ((polygon,),) = (one["segmentation"] for one in formats.coco_file([found], polygons=True)["annotations"])
    assert f'"segmentation": [{polygon}]' in PAGE

"""Every form and back gives the masks, by pycocotools."""

import json
import shutil

import numpy as np
import pytest
import yaml

from repvit_sam_jax.data.sources import open_source
from repvit_sam_jax.evals.tasks import prompted
from tests.helpers.annotations import CLASSES, SIZES, read_coco, same

FORMS = ["coco", "polygons", "labelme", "labelstudio", "yolo", "rle"]


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(convert, coco, photos, masks, tmp_path, capsys, form):
    out = "there.json" if form in ("coco", "polygons", "labelstudio") else "there"
    printed, noise = convert(coco, out, "--to", form)
    assert printed == f"wrote {out}: 3 photos, 8 masks, {', '.join(CLASSES)}\n"
    assert noise == ""
    given = ["--photos", photos] if form in ("labelstudio", "yolo", "rle") else []
    convert(out, "back.json", *given)
    found = read_coco(tmp_path / "back.json", capsys)
    if form == "rle":  # SA-1B has no classes
        masks = {name: [("object", mask) for _, mask in of_photo] for name, of_photo in masks.items()}
    same(found, masks)


@pytest.mark.parametrize("form", ["coco", "polygons"])
def test_training_and_evaluation_find_masks_and_photos(convert, coco, photos, masks, tmp_path, form):
    """Wherever the file is: `info.photos` says where they are."""
    (tmp_path / "deep").mkdir()
    convert(coco, "deep/a.json", "--to", form)
    source = open_source(tmp_path / "deep" / "a.json")
    assert [source[i].photo for i in range(3)] == [(photos / name).read_bytes() for name in SIZES]
    task = prompted.open_task(tmp_path / "deep")
    items = {key: task.load(key) for key in task.keys}
    assert {key: item.photo.shape[:2] for key, item in items.items()} == SIZES
    assert {key: len(item.truth) for key, item in items.items()} == {name: len(of) for name, of in masks.items()}
    shutil.move(photos, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="lacks 3 of 3 photos"):
        open_source(tmp_path / "deep" / "a.json")
    assert len(open_source([tmp_path / "deep" / "a.json", tmp_path / "elsewhere"])) == 3


def test_a_data_set_of_yolo(convert, coco, photos, masks, tmp_path, capsys):
    """With photos in `images/`, in which form it is trained on, and classes by number."""
    convert(coco, "yolo", "--to", "yolo")
    root = tmp_path / "yolo"
    shutil.move(photos, root / "images")
    (root / "labels" / "none.txt").unlink()  # as of a photo without objects
    content = yaml.safe_load((root / "data.yaml").read_text())
    assert content["names"] == CLASSES
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "names": dict(enumerate(CLASSES))}))
    convert(root, "back.json")
    found = read_coco(tmp_path / "back.json", capsys)
    same({name.removeprefix("images/"): of_photo for name, of_photo in found.items()}, masks)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    convert(root, "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "back.json").read_bytes()


def test_scores_and_crowds_stay(convert, coco, tmp_path):
    content = json.loads(coco.read_text())
    content["annotations"][0]["iscrowd"] = 1
    coco.write_text(json.dumps(content))
    convert(coco, "out.json")
    first, second, *_ = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert (first["iscrowd"], second["iscrowd"]) == (1, 0)
    assert first["predicted_iou"] == 0.5


def test_pngs(convert, coco, masks, tmp_path):
    from tests.helpers.terminal import read

    convert(coco, "out", "--to", "png")
    for i, (_, mask) in enumerate(masks["sub/b.jpg"]):
        np.testing.assert_array_equal(read(tmp_path / "out" / "masks" / "sub" / "b" / f"mask_{i:04d}.png"), mask)

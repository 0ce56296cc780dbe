"""`repvit-sam everything`: a photo, or a folder of photos."""

import json
import os
import sys

import numpy as np
import pytest

from repvit_sam_jax import SamAutomaticMaskGenerator, cli, load
from repvit_sam_jax.data.sources import open_source
from tests.helpers.terminal import read, run


def test_everything(weights, photo, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    given = ["everything", photo, "--weights", weights, "--out", out, "--points-per-side", "3"]
    thresholds = ["--pred-iou-thresh", "-1", "--stability-score-thresh", "1e-6"]
    run(monkeypatch, *given, *thresholds, "--format", "png", "coco", "--json")
    result = json.loads(capsys.readouterr().out)
    content = json.loads((out / "records.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "photo.png", "width": 80, "height": 60}]
    records = content["annotations"]
    assert result["masks"] == len(records) > 0
    assert result["points"] == 9
    assert set(result["seconds"]) == {"load", "compile", "generate"}
    model, params = load(weights)
    settings = {"points_per_side": 3, "pred_iou_thresh": -1, "stability_score_thresh": 1e-6}
    expected = SamAutomaticMaskGenerator(model, params, **settings).generate(read(photo))
    modes = SamAutomaticMaskGenerator(model, params, **settings, output_mode="coco_rle").generate(read(photo))
    coco = [{"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0} for i in range(len(modes))]
    assert records == [{**about, **record} for about, record in zip(coco, modes, strict=True)]
    for i, record in enumerate(expected):
        np.testing.assert_array_equal(read(out / "masks" / "photo" / f"mask_{i:04d}.png") > 0, record["segmentation"])
    assert read(out / "overlay.png").shape == (60, 80, 3)
    monkeypatch.setattr(sys, "argv", ["repvit-sam", *map(str, given)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "no empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("photo_is", "out_is", "message"),
    [("empty folder", "new", "holds no file with an extension that"), ("file", "in a file", "photo.png is no folder")],
)
def test_everything_says_at_once_what_can_not_be(photo, tmp_path, monkeypatch, capsys, photo_is, out_is, message):
    given = photo if photo_is == "file" else photo.parent / "empty"
    (photo.parent / "empty").mkdir()
    out = tmp_path / "out" if out_is == "new" else photo / "out"
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, "everything", given, "--out", out)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_everything_leaves_nothing_when_it_can_not_begin(photo, weights, tmp_path, monkeypatch, capsys):
    for given, message in ((tmp_path / "nowhere", "no checkpoint at"), (weights, "points_per_side=0 leaves no points")):
        with pytest.raises(SystemExit, match="1"):
            run(monkeypatch, "everything", photo, "--weights", given, "--points-per-side", 0, "--out", tmp_path / "out")
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_everything_without_a_mask(weights, photo, tmp_path, monkeypatch, capsys):
    given = ["--weights", weights, "--out", tmp_path / "out", "--points-per-side", "3", "--pred-iou-thresh", "99"]
    run(monkeypatch, "everything", photo, *given)
    text = capsys.readouterr().out
    assert "0 masks from 9 points" in text
    assert "compile" in text
    assert "none of 27 candidates passed: 27 by pred_iou_thresh; lower --pred-iou-thresh (now 99) or --stab" in text
    assert json.loads((tmp_path / "out" / "records.json").read_text())["annotations"] == []
    np.testing.assert_array_equal(read(tmp_path / "out" / "overlay.png"), read(photo))


SEARCH = ["--points-per-side", "3", "2", "--pred-iou-thresh", "-1", "--stability-score-thresh", "1e-6"]


def test_everything_of_a_folder(weights, photos, tmp_path, monkeypatch, capsys):
    """COCO's form, which training reads, with the masks that each photo gives alone."""
    (photos / "broken.png").write_bytes(b"no photo")
    out = tmp_path / "out"
    given = ["everything", photos, "--weights", weights, "--out", out, *SEARCH, "--json"]
    with pytest.raises(SystemExit, match=r"error: .*broken\.png is not an image"):
        run(monkeypatch, *given)
    capsys.readouterr()
    (photos / "broken.png").unlink()
    run(monkeypatch, *given)
    assert json.loads(capsys.readouterr().out)["photos"] == 3
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "records.json"]
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.bmp.png", "a.png.png", "b.png"]
    source = open_source([out / "records.json", photos])
    generator = SamAutomaticMaskGenerator(
        *load(weights), points_per_side=(3, 2), pred_iou_thresh=-1, stability_score_thresh=1e-6, output_mode="coco_rle"
    )
    for i, name in enumerate(("a.bmp", "a.png", "b.png")):
        record = source[i]
        assert record.photo == (photos / name).read_bytes()
        found = json.loads(record.annotations)["annotations"]
        expected = generator.generate(photos / name)
        assert [{key: one[key] for key in expected[0]} for one in found] == expected
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, *given)
    assert "exists and is no empty folder" in capsys.readouterr().err


def test_everything_goes_on_where_it_was_interrupted(weights, photos, tmp_path, monkeypatch, capsys):
    given = ["everything", photos, "--weights", weights, *SEARCH]
    run(monkeypatch, *given, "--out", tmp_path / "whole")
    searched = []
    original = SamAutomaticMaskGenerator.generate_batch

    def generate_batch(self, images, **options):
        if len(searched) == 2:
            searched.append("interrupted")
            raise KeyboardInterrupt
        searched.append(images[0].shape)
        return original(self, images, **options)

    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate_batch", generate_batch)
    with pytest.raises(SystemExit, match="130"):
        run(monkeypatch, *given, "--out", tmp_path / "out")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, *given, "--out", tmp_path / "out", "--box-nms-thresh", "0.5")
    assert "holds an unfinished run with other settings: box_nms_thresh; give them as" in capsys.readouterr().err
    os.utime(photos / "a.png", ns=(1, 1))  # as if it was another one
    run(monkeypatch, *given, "--out", tmp_path / "out")
    assert searched == [(30, 40, 3), (60, 80, 3), "interrupted", (60, 80, 3), (50, 40, 3)]
    whole, out = tmp_path / "whole", tmp_path / "out"
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert all((whole / file).read_bytes() == (out / file).read_bytes() for file in files)

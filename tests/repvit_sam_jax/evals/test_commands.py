"""`repvit-sam eval TASK` and `eval all`, on miniatures."""

import json

import numpy as np
import pytest

from repvit_sam_jax.evals import commands, segmenters
from repvit_sam_jax.evals.__main__ import main
from repvit_sam_jax.evals.proposals import tracks
from repvit_sam_jax.evals.segmenters import find_segmenter, names_of, open_segmenter
from repvit_sam_jax.weights.loading import DEMO
from tests.helpers.miniatures import bsds, coco, colour_segmenter, davis, duts, mvtec, uvo, videos


@pytest.fixture
def known(monkeypatch):
    """Weights `exact` and `wrong` are segmenters that know colours."""
    made = {
        "exact": lambda: colour_segmenter(256, name="exact", parts=False),
        "wrong": lambda: colour_segmenter(256, shift=(6, 6), name="wrong", parts=False),
    }
    monkeypatch.setattr(commands, "use_compile_cache", lambda folder: None)
    monkeypatch.setattr(segmenters, "find_segmenter", lambda weights: made[weights])
    monkeypatch.setattr(segmenters, "open_segmenter", lambda weights, dtype, name: made[weights]())


def test_several_models_in_one_table(known, tmp_path, capsys):
    data = bsds.write(tmp_path, photos=1)
    given = ["edges", "--data", str(data), "--weights", "exact", "wrong", "--out", str(tmp_path / "out")]
    main([*given, "--workers", "0", "--sobel", "--pictures", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| edges | ODS | OIS | AP |"
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["sobel", "exact", "wrong"]
    assert lines[8] == "| *RepViT-SAM, published* | *0.764* | *0.786* | *0.773* |"
    made = sorted(path.name for path in (tmp_path / "out/edges").iterdir())
    assert made == ["exact.json", "pictures", "pictures.png", "sobel.json", "table.md", "wrong.json"]
    assert (tmp_path / "out/edges/table.md").read_text().splitlines() == lines
    main([*given, "--json"])  # read, not measured
    numbers = {one["name"]: one["numbers"]["ODS"] for one in json.loads(capsys.readouterr().out)}
    assert numbers["exact"] > 0.98
    assert numbers["wrong"] < 0.6


def test_all_says_what_is_not_there(known, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["all", "--data-root", str(tmp_path)])
    assert "has no folder of a data set, such as BSDS500 or coco" in capsys.readouterr().err
    bsds.write(tmp_path, photos=1)
    (tmp_path / "DUTS-TE").mkdir()
    main(["all", "--data-root", str(tmp_path), "--weights", "exact", "--workers", "0", "--out", str(tmp_path / "out")])
    found = capsys.readouterr()
    assert found.out.startswith("| edges | ODS | OIS | AP |\n|---|---:|---:|---:|\n| exact |")
    assert "davis: not measured, there is no folder of its data" in found.err
    assert f"duts: not measured, {tmp_path / 'DUTS-TE'} is not" in found.err


NAMED = {
    "edges": "ODS",
    "coco": "AP",
    "seginw": "mean AP",
    "davis": "J&F-Mean",
    "uvo": "AR100",
    "duts": "F1",
    "mvtec": "max F1",
    "prompted": "box single all",
    "lvis": "box best all",
}


@pytest.mark.filterwarnings("ignore:.*classes:UserWarning", "ignore:.*sets.*:UserWarning")
def test_all_measures_every_task(known, tmp_path, capsys):
    """The first item of each data set, in its layout, with a segmenter that knows the objects."""
    root, proposals = tmp_path / "root", tmp_path / "root/proposals"
    proposals.mkdir(parents=True)
    bsds.write(root, photos=1)
    for write in (coco.write, coco.write_lvis, coco.write_seginw, duts.write, mvtec.write):
        write(root)
    moving = {"one": videos.moving(0, 4)}
    davis.write(root, moving)
    uvo.write(root, moving)
    for name in ("coco", "prompted"):
        coco.write_json(proposals / f"{name}.json", coco.boxes())
    coco.write_json(proposals / "seginw.json", coco.seginw_boxes())
    for name in ("davis", "uvo"):
        tracks.write(proposals / f"{name}.npz", [("one", videos.follow(moving["one"]))])
    np.savez(proposals / "mvtec.npz", **mvtec.proposals())
    given = ["all", "--data-root", str(root), "--weights", "exact", "--limit", "1", "--workers", "0", "--json"]
    main([*given, "--out", str(tmp_path / "out")])
    found = capsys.readouterr()
    assert "not measured" not in found.err
    numbers = {one["task"]: one["numbers"][NAMED[one["task"]]] for one in json.loads(found.out)}
    assert list(numbers) == list(NAMED)
    assert numbers.pop("seginw") == pytest.approx((51 / 101 * 0.5 + 1) / 2, abs=0.02)  # as its own test says
    assert min(numbers.values()) > 0.9, numbers


def test_segmenters_are_found_before_anything_is_measured(tmp_path, capsys):
    assert find_segmenter("demo") == DEMO
    with pytest.raises(FileNotFoundError, match=r"there are no weights at .*none.safetensors"):
        find_segmenter(tmp_path / "none.safetensors")
    data = bsds.write(tmp_path, photos=1)
    with pytest.raises(SystemExit, match="1"):
        main(["edges", "--data", str(data), "--weights", "demo", "none.pt", "--out", str(tmp_path / "out")])
    assert "error: there are no weights at none.pt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_in_tables_differ():
    assert names_of(["a/x.pt", "y.pt", "b/x.safetensors"]) == ["x-1", "y", "x-2"]


def test_what_a_result_says_of_its_weights():
    opened = open_segmenter("demo")
    assert opened.name == "demo"
    assert opened.about["model"] == "demo"
    assert len(opened.about["sha256"]) == 64

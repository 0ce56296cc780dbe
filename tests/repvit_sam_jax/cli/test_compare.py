"""`repvit-sam compare`: models side by side in a picture."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.cli import compare
from repvit_sam_jax.evals import segmenters
from tests.helpers import miniatures
from tests.helpers.miniatures import colour_segmenter, photo_of
from tests.helpers.terminal import read, run

SIZE = (96, 128)
LINES = 2 * compare.LINE + compare.GAP


def scene(number):
    return miniatures.scene(number, SIZE)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two scenes in the working folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        Image.fromarray(photo_of(scene(number))).save(f"{number}.png")
    return ["0.png", "1.png"]


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Models that know colours, the second of which is wrong by a shift; those that were opened, with their calls."""
    made = []

    def open_segmenter(weights, dtype, name):
        segmenter = colour_segmenter(128, (0, 0) if weights == "exact" else (40, 40), name)
        calls, backend = [], segmenter.predictor.backend
        for kind in ("encode", "decode"):
            monkeypatch.setattr(backend, kind, counting(getattr(backend, kind), kind, calls))
        made.append((name, calls))
        return segmenter

    for name in ("exact", "shifted"):
        (tmp_path / name).touch()
    monkeypatch.setattr(segmenters, "open_segmenter", open_segmenter)
    return made


def counting(function, kind, calls):
    return lambda *args: calls.append(kind) or function(*args)


def inside(number, label):
    """(x, y) well within an object."""
    y, x = np.nonzero(scene(number) == label)
    return f"{round(x.mean())},{round(y.mean())}"


def box_of(number, label):
    y, x = np.nonzero(scene(number) == label)
    return f"{x.min()},{y.min()},{x.max() + 1},{y.max() + 1}"


def panel(sheet, row, column):
    width = sheet.shape[1] // 2
    top = compare.LINE + 4 + row * (compare.HEIGHT + LINES)
    return sheet[top : top + compare.HEIGHT, column * (width + compare.GAP // 2) :][:, : width - compare.GAP // 2]


def test_points_are_above_boxes_and_models_beside_each_other(photos, opened, monkeypatch, capsys):
    point, box = inside(0, 1), box_of(0, 2)
    run(monkeypatch, "compare", photos[0], "--weights", "exact", "shifted", "--box", box, "--point", point)
    sheet = read("comparison.png")
    side = round(SIZE[1] * compare.HEIGHT / SIZE[0])
    assert sheet.shape == (compare.LINE + 4 + 2 * (compare.HEIGHT + LINES), 2 * side + compare.GAP, 3)
    enlarged = lambda pixels, how: np.array(Image.fromarray(pixels).resize((side, compare.HEIGHT), how))
    labels = enlarged(scene(0).astype(np.uint8), Image.Resampling.NEAREST)
    plain = enlarged(photo_of(scene(0)), Image.Resampling.LANCZOS).astype(int)
    differs = lambda row, column: np.abs(panel(sheet, row, column) - plain).max(-1) > 50
    changed = lambda row, column, label: differs(row, column)[labels == label].mean()
    for row, label in ((0, 1), (1, 2)):
        assert changed(row, 0, label) > 0.99  # the mask covers the object that was meant
        assert changed(row, 1, label) < 0.5
    assert changed(0, 0, 2) < 0.1
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if not line.startswith(" ")] == [
        "exact: exact in float32, colours",
        "shifted: shifted in float32, colours",
        "wrote comparison.png",
    ]
    times = r"predicted IoU 0\.900, encode [\d.]+ m?s, decode [\d.]+ m?s"
    assert re.fullmatch(rf"  0\.png, 1 point: {times}", printed[1])
    assert re.fullmatch(rf"  0\.png, box: {times}", printed[2])


def test_each_kind_of_call_is_made_once_before_it_is_timed(photos, opened, monkeypatch):
    """Two kinds of prompts and one size of photos; then every photo once and every prompt once."""
    boxes = ["--box", box_of(0, 1), "--box", box_of(0, 2)]
    run(monkeypatch, "compare", *photos, "--weights", "exact", "exact", "--point", "20", "20", *boxes)
    assert [name for name, _ in opened] == ["exact-1", "exact-2"]
    for _, calls in opened:
        assert calls == ["encode", *["decode"] * 2, *["encode"] * 2, *["decode"] * 6]


def test_photos_have_prompts_of_their_own(photos, opened, monkeypatch, capsys):
    given = {"1.png": {"box": [1, 2, 30, 40]}, "0.png": [{"points": [[5, 6], [7, 8, 0]]}, {"points": [[9, 9]]}]}
    Path("prompts.json").write_text(json.dumps(given))
    run(monkeypatch, "compare", *photos, "--weights", "exact", "--prompts", "prompts.json", "--out", "a.png")
    rows = [line.partition(":")[0].strip() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert rows == ["0.png, 2 points", "0.png, 1 point", "1.png, box"]
    assert read("a.png").shape[0] == compare.LINE + 4 + 3 * (compare.HEIGHT + LINES)


def test_without_weights_the_demonstration_model_is_compared(demo, photo, monkeypatch, capsys):
    run(monkeypatch, "compare", photo, "--point", "20", "30")
    assert capsys.readouterr().out.startswith("demo: tiny in float32, jax\n  photo.png, 1 point: predicted IoU ")
    assert read("comparison.png").ndim == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0.png"], "give prompts: --point, --box or both for all photos, or --prompts"),
        (["0.png", "--point", "1,2", "--prompts", "p.json"], "give prompts: --point, --box or both"),
        (["--point", "1,2"], "nothing to compare: give photos"),
        (["0.png", "--point", "1,2", "--weights"], "nothing to compare: give photos, and --weights"),
        (["0.png", "none.png", "--point", "1,2"], "no image at none.png"),
        (["0.png", "--point", "1,2,3"], "labels of --point are 1"),
        (["0.png", "--point", "1"], "--point 1: expected X,Y"),
        (["0.png", "--box", "1,2,3"], "--box 1,2,3: expected X1,Y1,X2,Y2"),
        (
            ["0.png", "1.png", "--point", "128,2", "--point", "129,2"],
            "0.png: point 1, (129, 2), lies outside",
        ),
        (["0.png", "--box", "9,2,3,4"], "0.png: the box is inverted"),
        (["0.png", "--point", "1,2", "--out", "exact"], "--out exact: the file is written as .png"),
        (["0.png", "--point", "1,2", "--out", "1.png"], "--out 1.png exists; give another name, or --overwrite"),
        (["0.png", "--point", "1,2", "--out", "0.png", "--overwrite"], "--out 0.png is one of the photos"),
        (["0.png", "--point", "1,2", "--weights", "exact", "none"], "there are no weights at none"),
        (["0.png", "1.png", "--prompts", "one.json"], "one.json has no prompt for 1.png"),
        (["0.png", "inner/0.png", "--prompts", "one.json"], "--prompts tells photos by their names, and several are"),
    ],
)
def test_mistakes_are_named_before_a_model_is_opened(photos, opened, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "one.json").write_text('{"0.png": {"points": [[1, 2]]}}')
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/0.png").write_bytes((tmp_path / "0.png").read_bytes())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, "compare", *arguments)
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert opened == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

"""Embeddings that commands keep and read."""

import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import PRESETS, SamPredictor, cli
from repvit_sam_jax.weights import checkpoint
from tests.helpers.models import random_params
from tests.helpers.terminal import read, run

SEARCH = ["--points-per-side", "3", "--pred-iou-thresh", "-1", "--stability-score-thresh", "1e-6"]


@pytest.fixture
def no_encoder(monkeypatch):
    """From when it is called, encoding is a mistake."""

    def forbid():
        monkeypatch.setattr(SamPredictor, "embed", lambda _, images: [pytest.fail("encoded") for _ in images])

    return forbid


def test_a_photo(weights, photo, tmp_path, monkeypatch, no_encoder):
    out, stored = tmp_path / "mask.png", tmp_path / "photo.npz"
    given = ["segment", photo, "--point", "20,30", "--weights", weights, "--out", out]
    run(monkeypatch, *given, "--save-embedding", stored)
    expected = read(out)
    run(monkeypatch, "everything", photo, "--weights", weights, *SEARCH, "--out", tmp_path / "whole")
    no_encoder()
    run(monkeypatch, *given, "--embedding", stored, "--overwrite", "--overlay", tmp_path / "over.png")
    np.testing.assert_array_equal(read(out), expected)
    run(monkeypatch, "everything", photo, "--weights", weights, *SEARCH, "--out", tmp_path / "o", "--embedding", stored)
    for name in ("records.json", "overlay.png"):
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("first", ["segment", "everything"])
def test_a_folder(weights, photos, tmp_path, monkeypatch, no_encoder, first):
    """What one command keeps, both read; files are called as the photos, in full where two share a stem."""
    commands = {
        "segment": ["segment", photos, "--point", "20,30", "--weights", weights],
        "everything": ["everything", photos, *SEARCH, "--weights", weights],
    }
    second = "everything" if first == "segment" else "segment"
    run(monkeypatch, *commands[first], "--out", tmp_path / "1", "--save-embedding", tmp_path / "e")
    run(monkeypatch, *commands[second], "--out", tmp_path / "2")
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["a.bmp.npz", "a.png.npz", "b.npz"]
    no_encoder()
    for name, expected in ((first, "1"), (second, "2")):
        run(monkeypatch, *commands[name], "--out", tmp_path / name, "--embedding", tmp_path / "e")
        files = [path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert len(files) >= 3
        for file in files:
            there = (tmp_path / expected / file).read_bytes()  # of photos that are encoded together, or one by one
            assert name != first or (tmp_path / name / file).read_bytes() == there


def test_the_others_are_segmented_when_one_embedding_lacks(weights, photos, tmp_path, monkeypatch, capsys):
    given = ["segment", photos, "--point", "20,30", "--weights", weights]
    run(monkeypatch, *given, "--out", tmp_path / "1", "--save-embedding", tmp_path / "e")
    (tmp_path / "e" / "b.npz").unlink()
    (tmp_path / "e" / "a.png.npz").write_bytes((tmp_path / "e" / "a.bmp.npz").read_bytes())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *given, "--out", tmp_path / "2", "--embedding", tmp_path / "e", "--json")
    wrong, absent = str(stop.value.code).splitlines()
    assert wrong.endswith(
        "a.png: the embedding is of a photo of 40 x 30 pixels, not 80 x 60; save it again with --save-embedding"
    )
    assert absent.startswith(f"error: no embedding at {tmp_path / 'e' / 'b.npz'}")
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["a.bmp.png"]
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1


@pytest.fixture
def stored(weights, photo, tmp_path, monkeypatch, capsys):
    run(
        monkeypatch,
        "segment",
        photo,
        "--point",
        "20,30",
        "--weights",
        weights,
        "--save-embedding",
        tmp_path / "e.npz",
        "--out",
        tmp_path / "m.png",
    )
    capsys.readouterr()
    return tmp_path / "e.npz"


@pytest.mark.parametrize("command", ["segment", "everything"])
def test_another_model_or_photo(tiny_train, weights, photo, stored, tmp_path, monkeypatch, capsys, command):
    params = random_params(tiny_train[0], seed=5)
    checkpoint.save(tmp_path / "other.safetensors", params, checkpoint.Metadata(PRESETS["tiny"], "train"))
    Image.new("RGB", (30, 20)).save(tmp_path / "other.png")
    more = ["--point", "2,3", "--out", tmp_path / "new.png"] if command == "segment" else ["--out", tmp_path / "new"]
    other, junk, none = (tmp_path / name for name in ("other.png", "junk.npz", "none.npz"))
    junk.write_bytes(b"PK")
    for of, by, file, message in (
        (photo, tmp_path / "other.safetensors", stored, f"{stored} was made by another image encoder than this tiny's"),
        (other, weights, stored, f"{other}: the embedding is of a photo of 80 x 60 pixels, not 30 x 20"),
        (photo, weights, none, f"no embedding at {none}; the same command with"),
        (photo, weights, junk, f"{junk} is no embedding of this library, or it is damaged: "),
    ):
        with pytest.raises(SystemExit, match="1"):
            run(monkeypatch, command, of, "--weights", by, "--embedding", file, *more)
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {message}")
        assert errors.count("\n") == 1
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / "new.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["segment", "--point", "2,3", "--save-embedding", "a.npy"],
            "--save-embedding a.npy: the file is written as .npz",
        ),
        (
            ["segment", "--point", "2,3", "--save-embedding", "e.npz"],
            "--save-embedding e.npz exists; give another name",
        ),
        (
            ["segment", "--point", "2,3", "--save-embedding", "a.npz", "--embedding", "e.npz"],
            "give --embedding or --save",
        ),
        (["everything", "--out", "o", "--save-embedding", "e.npz"], "--save-embedding e.npz exists; give another name"),
        (["everything", "--out", "o", "--save-embedding", "o/e.npz"], "--save-embedding o/e.npz: there is no folder o"),
        (
            ["everything", "--out", "o", "--embedding", "e.npz", "--crop-n-layers", "1"],
            "--embedding is of the whole photo",
        ),
    ],
)
def test_said_before_any_work(photo, stored, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(photo.parent)
    monkeypatch.setattr(cli.importlib.import_module("repvit_sam_jax.cli.common").Model, "open", pytest.fail)
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, *arguments, photo)
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (photo.parent / "o").exists()

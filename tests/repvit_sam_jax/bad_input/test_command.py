"""`repvit-sam segment`: one line of error, and nothing written."""

import jax
import numpy as np
import pytest

from repvit_sam_jax import SamPredictor, cli
from repvit_sam_jax.weights import checkpoint
from tests.repvit_sam_jax.bad_input.conftest import saved


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(path, jax.tree.map(np.asarray, tiny[1]), checkpoint.Metadata(tiny[0].config, "deploy"))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to segment: give --point or --box"),
        (["--point", "5"], "--point 5: expected X,Y or X,Y,LABEL"),
        (["--point", "5,6,1,1"], "--point 5,6,1,1: expected X,Y or X,Y,LABEL"),
        (["--point", "5;6"], "--point 5;6: expected X,Y or X,Y,LABEL"),
        (["--point", "5,"], "--point 5,: expected X,Y or X,Y,LABEL"),
        (["--point", ""], "--point : expected X,Y or X,Y,LABEL"),
        (["--point", "5,6", "--point", "a,b"], "--point a,b: expected X,Y or X,Y,LABEL"),
        (["--box", "1,2,3"], "--box 1,2,3: expected X1,Y1,X2,Y2"),
        (["--box", "1,2,3,four"], "--box 1,2,3,four: expected X1,Y1,X2,Y2"),
        (["--point", "5,6", "--out", "mask.jpg"], "--out mask.jpg: the file is written as .png"),
        (["--point", "5,6", "--overlay", "overlay"], "--overlay overlay: the file is written as .png"),
        (["--point", "5,6", "--out", "none/mask.png"], "--out none/mask.png: there is no folder none"),
        (["--point", "5,6", "--overlay", "none/over.png"], "--overlay none/over.png: there is no folder none"),
        (["--point", "5,6", "--weights", "."], ". is a folder without model.safetensors"),
        (
            ["--point", "5,6", "--weights", "https://example.com/a.pt"],
            "https://example.com/a.pt is an address; download",
        ),
        (["--point", "5,6", "--weights", "none.safetensors"], "no checkpoint at none.safetensors"),
        (["--point", "5,6", "--weights", "photo.png"], "photo.png is no checkpoint"),
        (["--point", "5,6,2"], "labels of --point are"),
        (["--point", "nan,6"], "point 0 is not finite"),
        (["--point", "-5,6"], "point 0, (-5, 6), lies outside the image of width 90, height 60"),
        (["--box", "30,2,1,40"], "the box is inverted"),
        (["--box", "-30,2,-1,40"], "the box, (-30, 2, -1, 40), lies outside"),
    ],
)
def test_command_fails(tmp_path, photo, weights, monkeypatch, capsys, arguments, message):
    saved(tmp_path, photo, "photo.png")
    if "--weights" not in arguments:
        arguments = [*arguments, "--weights", str(weights)]
    assert_command_fails(["photo.png", *arguments], message, tmp_path, monkeypatch, capsys)


def test_command_without_photo(tmp_path, weights, monkeypatch, capsys):
    arguments = ["none.png", "--point", "5,6", "--weights", str(weights)]
    assert_command_fails(arguments, "no image at none.png", tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("option", ["--out", "--overlay"])
def test_command_writes_into_no_folder(tmp_path, photo, weights, monkeypatch, capsys, option):
    saved(tmp_path, photo, "photo.png")
    (tmp_path / "folder.png").mkdir()
    arguments = ["photo.png", "--point", "5,6", "--weights", str(weights), option, "folder.png"]
    assert_command_fails(arguments, "", tmp_path, monkeypatch, capsys, anywhere="folder.png")


def assert_command_fails(arguments, message, folder, monkeypatch, capsys, anywhere=""):
    """The command ends with 1 and one line on stderr, and has written nothing into the folder."""
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["repvit-sam", "segment", *arguments])
    monkeypatch.setattr(SamPredictor, "warmup", lambda *_, **__: None)  # compilation ahead takes seconds
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(f"error: {message}")
    assert anywhere in errors
    assert errors.count("\n") == 1
    assert sorted(folder.iterdir()) == before

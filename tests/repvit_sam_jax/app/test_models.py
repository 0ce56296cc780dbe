"""The menu of models, and the command that opens the page."""

import pytest

from repvit_sam_jax import terminal
from repvit_sam_jax.app.models import Menu
from repvit_sam_jax.evals import segmenters
from repvit_sam_jax.weights import hub
from tests.helpers.miniatures import colour_segmenter
from tests.helpers.terminal import run


@pytest.fixture
def opened(monkeypatch):
    """What was opened, in place of opening it."""
    calls = []

    def open_segmenter(weights, dtype):
        calls.append((weights, dtype))
        if weights == "damaged.pt":
            raise ValueError("damaged.pt is damaged")
        return colour_segmenter()

    monkeypatch.setattr(segmenters, "open_segmenter", open_segmenter)
    return calls


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "cache", lambda: tmp_path / "cache")
    for name in ("mine.safetensors", "damaged.pt"):
        (tmp_path / name).touch()


def test_files_come_first_and_names_last_without_a_download(files, opened, tmp_path):
    menu = Menu(["mine.safetensors"])
    assert menu.first == "mine"
    assert list(menu.names) == ["mine", "demo", "repvit_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam"]
    assert ("repvit_sam (to be downloaded)", "repvit_sam") in menu.choices
    assert ("demo", "demo") in menu.choices
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "repvit_sam.pt").touch()
    assert ("repvit_sam", "repvit_sam") in menu.choices
    assert Menu().first == "demo"
    assert opened == []


def test_a_model_is_loaded_once(files, opened):
    menu = Menu(["mine.safetensors"], "bfloat16")
    assert menu.get("mine") is menu.get("mine")
    assert menu.name_of(menu.get("mine")) == "mine"
    assert menu.name_of(None) == "mine"
    assert opened == [("mine.safetensors", "bfloat16")]
    with pytest.raises(ValueError, match="no model 'mine2' here"):
        menu.get("mine2")


def test_missing_files_are_named_at_once(files):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        Menu(["absent.pt"])


def test_what_is_compiled_is_said(files, opened, monkeypatch):
    menu, words = Menu(["damaged.pt"]), []
    segmenter = colour_segmenter()
    decode = segmenter.predictor.backend.decode
    spy = lambda *given: words.append((menu.state("demo"), given[1].masks is None)) or decode(*given)
    monkeypatch.setattr(segmenter.predictor.backend, "decode", spy)
    monkeypatch.setattr(menu, "get", lambda name: segmenter.predictor)
    assert menu.state("demo") == ("", True)
    menu.warmup("demo")
    assert {word for word, _ in words} == {("demo: compiling the decoder ...", False)}
    assert {without_mask for _, without_mask in words} == {True, False}
    word, over = menu.state("demo")
    assert word.startswith("demo: ready; compiled in ")
    assert over


def test_a_model_that_does_not_load_is_said(files, opened):
    menu = Menu(["damaged.pt"])
    menu.warmup("damaged")
    assert menu.state("damaged") == ("damaged: damaged.pt is damaged", True)


def test_the_extra_and_the_port_are_named(monkeypatch, capsys):
    monkeypatch.setattr(terminal.importlib.util, "find_spec", lambda name: None)
    for arguments, expected in (((), "repvit-sam-jax[app]"), (("--port", "0"), "--port 0: expected 1 to 65535")):
        monkeypatch.setattr("repvit_sam_jax.cli.place", lambda module: f"repvit_sam_jax.{module}")
        with pytest.raises(SystemExit, match="1"):
            run(monkeypatch, "app", *arguments)
        assert expected in capsys.readouterr().err

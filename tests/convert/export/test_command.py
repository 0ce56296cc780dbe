"""The commands that export: one line of error that names the remedy, and nothing written."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from convert import __main__ as command
from convert.export.source import read_source
from repvit_sam_jax import CLASSIFIERS, Classifier
from repvit_sam_jax.files import new_folder, sha256
from repvit_sam_jax.weights import checkpoint as checkpoints
from tests.helpers.commands import Done, run_commands

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bad_files(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "full").mkdir()
    for name in ("text.pt", "text.safetensors", "full/file"):
        (folder / name).write_text("import torch\n" * 20)
    (folder / "tiny.pt").write_bytes(checkpoint.read_bytes())
    classifier = Classifier(CLASSIFIERS["tiny_repvit"], "deploy")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), classifier.abstract_params())
    about = checkpoints.Metadata(classifier.config, "deploy")
    checkpoints.save(folder / "classifier.safetensors", params, about)
    torch.save({"image_encoder.trunk.weight": torch.zeros(1)}, folder / "other.pt")
    return folder


@pytest.mark.parametrize("format_", ["onnx", "coreml", "stablehlo", "litert", "web", "anylabeling", "cvat"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "error: no checkpoint at missing.pt\n"),
        (["text.pt"], "error: text.pt is no checkpoint"),
        (["text.safetensors"], "error: text.safetensors is not a safetensors file"),
        (
            ["classifier.safetensors"],
            "error: classifier.safetensors holds the classifier tiny_repvit; give a segmenter",
        ),
        (["other.pt"], "error: other.pt: these are the weights of another SAM-like model"),
        (["tiny.pt", "--resolution", "100"], "error: --image-size must be a positive multiple of 16, such as 1024"),
        (["tiny.pt", "--out", "full"], "error: --out full "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refuses(bad_files, monkeypatch, capsys, format_, arguments, message):
    monkeypatch.setattr(f"convert.export.{format_}.require", lambda *_, **__: None, raising=False)
    monkeypatch.chdir(bad_files)
    before = sorted(bad_files.rglob("*"))
    out = [] if "--out" in arguments else ["--out", "out"]
    monkeypatch.setattr(sys, "argv", ["convert", format_, *arguments, *out])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert sorted(bad_files.rglob("*")) == before


def test_demo_is_the_file_in_the_package(demo):
    source = read_source(Path("demo"), image_size=64)
    assert (source.config.name, source.config.image_size) == ("tiny", 64)
    assert source.source_sha256 == sha256(demo)
    jax.tree.map(np.testing.assert_array_equal, source.params, read_source(demo).params)


def test_sources_of_either_kind(checkpoint):
    found, expected = read_source(checkpoint), read_source(checkpoint.with_suffix(".safetensors"))
    assert found.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


MISSING = {
    ("from-torch", "old.pt", "new.safetensors"): ("torch", "convert"),
    ("to-torch", "tiny.safetensors", "new.pt"): ("torch", "convert"),
    ("onnx", "tiny.safetensors", "--out", "out"): ("torch", "export"),
    ("coreml", "tiny.safetensors", "--out", "out"): ("torch", "export"),
    ("litert", "tiny.safetensors", "--out", "out"): ("torch", "litert"),
    ("web", "tiny.safetensors", "--out", "out"): ("torch", "export"),
    ("anylabeling", "tiny.safetensors", "--out", "out"): ("torch", "export"),
    ("cvat", "tiny.safetensors", "--out", "out"): ("torch", "export"),
    ("parity", "tiny.pt"): ("torch", "convert"),
}
"""Commands, the first package that each misses, and the extra that it names."""
QUICK = ("--platforms", "cpu", "--function", "encode", "--image-size", "64")


@pytest.fixture(scope="module")
def without_torch(checkpoint, shallow, tmp_path_factory):
    """The commands in a process that finds no package of the extras, and its folder."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "tiny.pt").write_bytes(checkpoint.read_bytes())
    (folder / "tiny.safetensors").write_bytes(shallow.read_bytes())
    (folder / "old.pt").write_bytes(b"of before 1.6")
    given = [*MISSING, ["stablehlo", "tiny.pt", "--out", "out.hlo", *QUICK]]
    return run_commands("convert.__main__", given, folder, {"torch", "onnx", "coremltools"}), folder


@pytest.mark.parametrize(("number", "command"), list(enumerate(MISSING)), ids=[command[0] for command in MISSING])
def test_missing_extra_in_one_line(without_torch, number, command):
    done, folder = without_torch[0][number], without_torch[1]
    assert_names_the_extra(done, *MISSING[command])
    assert sorted(path.name for path in folder.iterdir()) == ["old.pt", "out.hlo", "tiny.pt", "tiny.safetensors"]


def assert_names_the_extra(done, package, extra):
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {package} not installed; this needs an extra: ")
    assert f"pip install 'repvit-sam-jax[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(("format_", "package"), [("onnx", "onnxruntime"), ("coreml", "coremltools")])
def test_missing_package_beside_torch(checkpoint, tmp_path, monkeypatch, capsys, format_, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    weights = checkpoint.with_suffix(".safetensors")
    monkeypatch.setattr(sys, "argv", ["convert", format_, str(weights), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    printed, errors = capsys.readouterr()
    assert_names_the_extra(Done(exit_.value.code, printed, errors), package, "export")
    assert not list(tmp_path.iterdir())


def test_stablehlo_from_safetensors_needs_jax_alone(without_torch):
    (*_, done), folder = without_torch
    assert done.returncode == 0, done.stderr
    assert "comparisons within tolerance" in done.stdout
    assert (folder / "out.hlo").is_file()


@pytest.mark.slow(group="use")
def test_the_whole_of_stablehlo_needs_jax_alone(checkpoint, tmp_path):
    given = ["stablehlo", checkpoint.with_suffix(".safetensors"), "--out", "out.hlo", "--platforms", "cpu"]
    absent = {"torch", "onnx", "coremltools", "pooch", "requests"}
    (done,) = run_commands("convert.__main__", [given], tmp_path, absent)
    assert done.returncode == 0, done.stderr
    assert "comparisons within tolerance" in done.stdout
    assert (tmp_path / "out.hlo").is_file()


@pytest.mark.parametrize("out", [".", "link", "a/new"])
def test_folders_that_are_empty_or_new(tmp_path, monkeypatch, out):
    """The current folder among them, and what a link leads to."""
    (tmp_path / "here").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / ("empty" if out == "." else "here"))
    before = sorted(tmp_path.rglob("*"))

    def fail():
        with new_folder(Path(out)) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert sorted(tmp_path.rglob("*")) == before
    with new_folder(Path(out)) as folder:
        (folder / "file").touch()
        (folder / "package").mkdir()
    assert sorted(path.name for path in Path(out).iterdir()) == ["file", "package"]
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_that_is_another_disk(tmp_path, monkeypatch):
    """As a volume of a container is: what is beside it can't be moved there."""
    out = tmp_path / "out"
    out.mkdir()
    replace = Path.replace

    def on_one_disk(path, target):
        assert path.resolve().is_relative_to(out), "cross-device link"
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", on_one_disk)
    with new_folder(out) as folder:
        (folder / "file").touch()
    assert [path.name for path in out.iterdir()] == ["file"]


def test_help_is_quick_to_import(monkeypatch, capsys):
    """None of the packages that the exports need is touched."""
    monkeypatch.setattr(sys, "argv", ["convert", "--help"])
    before = set(sys.modules)
    with pytest.raises(SystemExit):
        command.main()
    heavy = {"coremltools", "onnx", "onnxscript", "onnxruntime", "litert_torch"}
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & heavy
    assert "coreml" in capsys.readouterr().out

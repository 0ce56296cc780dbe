"""The commands that export: one line of error that names the remedy, and nothing written."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from convert import __main__ as command
from convert.digest import sha256
from convert.export.source import new_folder, read_source
from repvit_sam_jax import CLASSIFIERS, Classifier
from repvit_sam_jax import checkpoint as checkpoints


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


@pytest.mark.parametrize("format_", ["onnx", "coreml", "stablehlo", "litert"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "error: no checkpoint at missing.pt\n"),
        (["text.pt"], "error: text.pt was refused"),
        (["text.safetensors"], "error: text.safetensors is not a safetensors file"),
        (
            ["classifier.safetensors"],
            "error: classifier.safetensors holds the classifier tiny_repvit; give a segmenter",
        ),
        (["other.pt"], "error: other.pt: these are the weights of another SAM-like model"),
        (["tiny.pt", "--resolution", "100"], "error: --resolution must be a positive multiple of 16, such as 1024"),
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
    source = read_source(Path("demo"), resolution=64)
    assert (source.config.name, source.config.image_size) == ("tiny", 64)
    assert source.source_sha256 == sha256(demo)
    jax.tree.map(np.testing.assert_array_equal, source.params, read_source(demo).params)


BLOCK = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {packages} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, {root!r})
from convert.__main__ import main

pytestmark = pytest.mark.torch
main()
"""


def run_without(packages, folder, *arguments):
    """A command in a process that finds none of these packages, as on a machine where they are not installed."""
    code = BLOCK.format(packages=packages, root=str(Path(__file__).parents[3]))
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("packages", "arguments", "extra"),
    [
        ({"torch"}, ["from-torch", "tiny.pt", "tiny.safetensors"], "convert"),
        ({"pooch"}, ["download"], "convert"),
        ({"torch"}, ["onnx", "tiny.safetensors", "--out", "out"], "export"),
        ({"onnxruntime"}, ["onnx", "tiny.safetensors", "--out", "out"], "export"),
        ({"torch"}, ["coreml", "tiny.safetensors", "--out", "out"], "export"),
        ({"coremltools"}, ["coreml", "tiny.safetensors", "--out", "out"], "export"),
        ({"torch"}, ["litert", "tiny.safetensors", "--out", "out"], "litert"),
        ({"torch"}, ["stablehlo", "tiny.pt", "--out", "out"], "convert"),
    ],
    ids=lambda value: (
        "-".join(value[:1] if isinstance(value, list) else value) if not isinstance(value, str) else value
    ),
)
def test_missing_extra_in_one_line(checkpoint, tmp_path, packages, arguments, extra):
    for suffix in (".pt", ".safetensors"):
        (tmp_path / f"tiny{suffix}").write_bytes(checkpoint.with_suffix(suffix).read_bytes())
    before = sorted(tmp_path.rglob("*"))
    done = run_without(packages, tmp_path, *arguments)
    assert done.returncode == 1
    (name,) = packages
    assert done.stderr.startswith(f"error: {name} not installed; this needs an extra: ")
    assert f"pip install 'repvit-sam-jax[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_stablehlo_from_safetensors_needs_jax_alone(checkpoint, tmp_path):
    weights = checkpoint.with_suffix(".safetensors")
    packages = {"torch", "onnx", "coremltools", "pooch", "requests"}
    done = run_without(packages, tmp_path, "stablehlo", str(weights), "--out", "out.hlo", "--platforms", "cpu")
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
    assert "coreml-bench" in capsys.readouterr().out

"""The commands that export: one line of error that names the remedy, and nothing written."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from convert import __main__ as command  # noqa: E402
from convert.export.source import read_source  # noqa: E402
from convert.from_torch import sha256  # noqa: E402
from repvit_sam_jax import CLASSIFIERS, Classifier  # noqa: E402
from repvit_sam_jax import checkpoint as checkpoints  # noqa: E402


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


def test_help_is_quick_to_import(monkeypatch, capsys):
    """None of the packages that the exports need is touched."""
    monkeypatch.setattr(sys, "argv", ["convert", "--help"])
    before = set(sys.modules)
    with pytest.raises(SystemExit):
        command.main()
    heavy = {"coremltools", "onnx", "onnxscript", "onnxruntime", "litert_torch"}
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & heavy
    assert "coreml-bench" in capsys.readouterr().out

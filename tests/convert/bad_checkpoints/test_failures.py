"""What a failed conversion leaves behind: nothing."""

import numpy as np
import pytest
import torch

from convert.from_torch import from_torch
from convert.to_torch import to_torch
from repvit_sam_jax import CheckpointError
from repvit_sam_jax.weights import checkpoint
from tests.convert.bad_checkpoints.conftest import NORM

pytestmark = pytest.mark.torch


def failing_source(name, files, state, tmp_path):
    source = tmp_path / "source.pt"
    if name == "truncated":
        source.write_bytes((files / "train.pt").read_bytes()[:5000])
    elif name == "nan":
        torch.save({**state, NORM: state[NORM] * np.nan}, source)
    elif name == "missing key":
        torch.save({key: value for key, value in state.items() if key != NORM}, source)
    else:
        source.write_bytes((files / "train.pt").read_bytes())
    return source


@pytest.mark.parametrize("older", [None, b"older"])
@pytest.mark.parametrize("name", ["truncated", "nan", "missing key", "preset", "disk full"])
def test_failed_conversion_leaves_nothing(files, state, tmp_path, monkeypatch, name, older):
    source = failing_source(name, files, state, tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "target.safetensors"
    if older:
        target.write_bytes(older)
    if name == "disk full":

        def write_a_part(arrays, path, metadata):
            path.write_bytes(b"part")
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", write_a_part)
    with pytest.raises((CheckpointError, OSError)):
        from_torch(source, target, preset="nano" if name == "preset" else None)
    assert [path.name for path in target.parent.iterdir()] == (["target.safetensors"] if older else [])
    assert not older or target.read_bytes() == older


def test_target_is_a_folder(files, tmp_path):
    (tmp_path / "target.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"target\.safetensors"):
        from_torch(files / "train.pt", tmp_path / "target.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["target.safetensors"]


@pytest.mark.parametrize("older", [None, b"older"])
def test_failed_conversion_to_torch_leaves_nothing(files, tmp_path, monkeypatch, older):
    if older:
        (tmp_path / "target.pt").write_bytes(older)

    def write_a_part(state, path):
        path.write_bytes(b"part")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", write_a_part)
    with pytest.raises(OSError, match="No space left"):
        to_torch(files / "train.safetensors", tmp_path / "target.pt")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([older] if older else [])

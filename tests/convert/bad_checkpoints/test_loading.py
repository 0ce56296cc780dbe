"""`load` and `to-torch` of files that are damaged, foreign or in the wrong form."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.to_torch import to_torch
from repvit_sam_jax import CheckpointError, load
from repvit_sam_jax.weights import checkpoint
from tests.convert.bad_checkpoints.conftest import TINY

pytestmark = pytest.mark.torch


def test_load_of_a_pytorch_file_under_another_name(files, tmp_path):
    (tmp_path / "sam.safetensors").write_bytes((files / "train.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"sam\.safetensors is not a safetensors file"):
        load(tmp_path / "sam.safetensors")


def test_load_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint at {tmp_path / 'missing.safetensors'}")):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} is a folder without model.safetensors")):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_load_of_a_truncated_file(files, tmp_path, keep):
    (tmp_path / "cut.safetensors").write_bytes((files / "deploy.safetensors").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a safetensors file, or it is truncated"):
        load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_load_of_a_foreign_file(tmp_path, metadata):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors", metadata)
    with pytest.raises(
        CheckpointError,
        match=r"foreign\.safetensors: .* no model of this library \(its first keys: weight\)",
    ):
        load(tmp_path / "foreign.safetensors")


def test_load_of_a_file_of_a_later_version(files, tmp_path):
    arrays = checkpoint.read(files / "deploy.safetensors")
    later = {**arrays[1].to_strings(), "format": "repvit_sam_jax/2"}
    save_file(arrays[0], tmp_path / "later.safetensors", later)
    with pytest.raises(CheckpointError, match=r"later\.safetensors can't be loaded: .*say format='repvit_sam_jax/1'"):
        load(tmp_path / "later.safetensors")


def config(**changes):
    values = json.loads(json.dumps(dataclasses.asdict(TINY)))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        config(image_size=100),
        config(image_size="128"),
        config(more=1),
        config(image_encoder=None),
        config(image_encoder__channels=None),
        config(image_encoder__channels=[8, 16]),
        config(image_encoder__channels=[0, 16, 24, 32]),
        config(image_encoder__channels=["8", "16", "24", "32"]),
        config(mask_decoder__num_heads=0),
        config(mask_decoder__num_heads=3),
    ],
)
def test_load_with_a_damaged_config(rewrite, text):
    with pytest.raises(CheckpointError, match=r"variant\.safetensors"):
        load(rewrite(config=text))


@pytest.mark.parametrize(("field", "value"), [("form", "fused"), ("form", None), ("config", None), ("converter", None)])
def test_load_with_damaged_metadata(rewrite, field, value):
    with pytest.raises(
        CheckpointError, match=rf"variant\.safetensors can't be loaded: its metadata are damaged.*{field}"
    ):
        load(rewrite(**{field: value}))


def test_load_lists_all_that_is_wrong(rewrite):
    def edit(arrays):
        first, second, third, *_ = arrays
        del arrays[first]
        arrays[second] = np.zeros((1, 2, 3), np.float32)
        arrays[third] = arrays[third] * np.float32("nan")
        edit.names = first, second, third
        return {**arrays, "extra": np.zeros(2, np.float32)}

    path = rewrite(edit)
    with pytest.raises(CheckpointError, match=r"variant\.safetensors \(tiny, deploy form\): 4 problem\(s\)") as caught:
        load(path)
    first, second, third = edit.names
    for line in (
        f"missing: {first} ",
        "unexpected: extra (2,)",
        f"wrong shape: {second} is (1, 2, 3), ",
        f"infinite: {third}",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_load_of_arrays_of_another_type(rewrite, dtype):
    name = "image_encoder/neck/conv1/kernel"
    path = rewrite(lambda arrays: {**arrays, name: arrays[name].astype(dtype)})
    with pytest.raises(CheckpointError, match=f"{name}.*{np.dtype(dtype).name}"):
        load(path)


def test_training_form_of_a_deploy_file(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"deploy\.safetensors is in deploy form"):
        load(files / "deploy.safetensors", form="train")
    with pytest.raises(CheckpointError, match=r"deploy\.safetensors is in deploy form"):
        to_torch(files / "deploy.safetensors", tmp_path / "target.pt", form="train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["train", "deploy"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "fused"}, "form must be one of train, deploy, got 'fused'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ({"image_size": 100}, "image_size must be a positive multiple of 16, got 100"),
    ],
)
def test_load_with_bad_arguments(files, source, options, message):
    with pytest.raises(ValueError, match=message):
        load(files / f"{source}.safetensors", **options)


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_to_torch_lists_all_that_is_wrong(rewrite, tmp_path, form):
    def edit(arrays):
        edit.names = [name for name in arrays if name.startswith("batch_stats/")][:2]
        return {name: value for name, value in arrays.items() if name not in edit.names}

    path = rewrite(edit, source="train")
    with pytest.raises(CheckpointError, match=r"\(tiny, train form\): 2 problem\(s\)") as caught:
        to_torch(path, tmp_path / "target.pt", form=form)
    assert all(f"missing: {name}" in str(caught.value) for name in edit.names)
    assert not (tmp_path / "target.pt").exists()


def test_to_torch_of_a_foreign_file(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: these are the weights of no model"):
        to_torch(tmp_path / "foreign.safetensors", tmp_path / "target.pt")

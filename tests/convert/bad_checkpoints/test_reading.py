"""PyTorch files: what is read, and what is refused."""

import dataclasses
import os
import pickle
import re
import shlex

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from convert import synthetic
from convert.from_torch import from_torch, read_state_dict
from convert.to_torch import to_torch
from repvit_sam_jax import PRESETS, CheckpointError
from repvit_sam_jax.weights import checkpoint
from tests.convert.bad_checkpoints.conftest import LINEAR, NORM, TINY, TOKENS, assert_same

pytestmark = pytest.mark.torch


# Files that are no PyTorch checkpoint
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.999])
def test_truncated(files, tmp_path, fraction):
    whole = (files / "train.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(CheckpointError, match=r"cut\.pt is not a PyTorch checkpoint, or it is truncated"):
        read_state_dict(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n",
        b"a text file\n",
        b"just some words, and some more of them\n",
        b"quite another text\nwith two lines\n",
        b"G",
        b"<!DOCTYPE html><html><body>404</body></html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b'{"message": "Not Found"}',
    ],
)
def test_text_file(tmp_path, content):
    (tmp_path / "text.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"text\.pt.* no(t a)? PyTorch checkpoint"):
        read_state_dict(tmp_path / "text.pt")


def test_empty_file(tmp_path):
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pt is not a PyTorch checkpoint"):
        read_state_dict(tmp_path / "empty.pt")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint at {tmp_path / 'missing.pt'}")):
        read_state_dict(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} is a folder without model.safetensors")):
        read_state_dict(tmp_path)


def test_old_format_is_read(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_state_dict(tmp_path / "old.pt")["a"], np.arange(3, dtype=np.float32))


def test_old_format_with_damaged_storage_keys(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    key = re.search(rb"\d{8,}", content)[0]
    (tmp_path / "old.pt").write_bytes(content.replace(key, b"x" * len(key), 1))
    with pytest.raises(CheckpointError, match=r"old\.pt"):
        read_state_dict(tmp_path / "old.pt")


class Foreign:
    pass


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_object(tmp_path, zipped):
    content = {"weight": torch.zeros(2), "trainer": Foreign()}
    torch.save(content, tmp_path / "foreign.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"foreign\.pt was refused.*save the state_dict alone") as error:
        read_state_dict(tmp_path / "foreign.pt")
    assert "Foreign" in str(error.value)
    assert "\x1b" not in str(error.value)  # torch's advice to load it all the same, in bold
    assert "trust" not in str(error.value)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_nothing_is_executed(tmp_path, form):
    content = {"weight": torch.zeros(2), "payload": Command(tmp_path / "executed")}
    if form == "pickle":
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content["payload"], protocol=2))
    else:
        torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pt was refused"):
        read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([torch.zeros(2)], "list"),
        (3, "int"),
        (None, "NoneType"),
        (torch.zeros(2), "Tensor"),
        ({1: torch.zeros(2)}, "dict"),
    ],
)
def test_content_is_no_state_dict(convert, content, kind):
    with pytest.raises(CheckpointError, match=rf"source\.pt holds an? {kind}, not a state dict"):
        convert(content)


def test_values_are_no_tensors(convert):
    with pytest.raises(CheckpointError, match=r"more than tensors: epoch \(int\), name \(str\), rates \(list\)$"):
        convert({"weight": torch.zeros(2), "epoch": 3, "name": "x", "rates": [0.1]})


@pytest.mark.parametrize("content", [{}, {"model": {}}])
def test_empty_state_dict(convert, content):
    with pytest.raises(CheckpointError, match="none at all"):
        convert(content)


# Unusual files that are fine
def prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


WRAPPERS = {
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {"lr": 0.1}},
    "module": prefixed,
    "module in model": lambda state: {"model": prefixed(state)},
    "module in state_dict in model": lambda state: {"model": {"state_dict": prefixed(state)}, "epoch": 3},
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped(files, convert, state, name):
    found, metadata = convert(WRAPPERS[name](state))
    expected, _ = checkpoint.read(files / "train.safetensors")
    assert_same(found, expected)
    assert (metadata.config, metadata.form) == (TINY, "train")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast_exactly(tmp_path, convert, state, dtype):
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save(half, tmp_path / "half.pt")
    expected = {key: value.to(torch.float64).numpy() for key, value in half.items()}
    found = {key: np.array(checkpoint.widen(value)) for key, value in read_state_dict(tmp_path / "half.pt").items()}
    assert all(found[key].dtype == (np.float32 if half[key].is_floating_point() else np.int64) for key in half)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key].astype(np.float64), value, err_msg=key)
    converted, _ = convert(half)
    from_float32, _ = convert({key: torch.from_numpy(value) for key, value in found.items()})
    assert_same(converted, from_float32)


def test_float64_is_rounded(tmp_path, state):
    torch.save({NORM: state[NORM].double() + 1e-12}, tmp_path / "double.pt")
    found = checkpoint.widen(read_state_dict(tmp_path / "double.pt")[NORM])
    np.testing.assert_array_equal(found, state[NORM].numpy(), strict=True)


def test_parameters_are_tensors(files, convert, state):
    found, _ = convert({**state, NORM: torch.nn.Parameter(state[NORM])})
    expected, _ = checkpoint.read(files / "train.safetensors")
    assert_same(found, expected)


# Tensors that do not fit
def test_every_problem_is_in_one_message(convert, state):
    del state[NORM]
    state["mask_decoder.extra.weight"] = torch.zeros(5)
    state[LINEAR] = state[LINEAR][:-1]
    state[TOKENS] = state[TOKENS] * np.nan
    with pytest.raises(CheckpointError) as caught:
        convert(state)
    message = str(caught.value)
    shape = tuple(state[LINEAR].shape)
    assert "state dict of tiny (train form): 4 problem(s)" in message
    assert f"missing: {NORM} (32,)" in message
    assert "unexpected: mask_decoder.extra.weight (5,)" in message
    assert f"wrong shape: {LINEAR} is {shape}, expected {(shape[0] + 1, shape[1])}" in message
    assert f"NaN or infinite: {TOKENS}" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_is_not_finite(convert, state, value):
    state[LINEAR] = state[LINEAR].clone()
    state[LINEAR][0, 1] = value
    with pytest.raises(CheckpointError, match=rf"1 problem\(s\)\s+NaN or infinite: {LINEAR}$"):
        convert(state)


def test_float64_beyond_float32(convert, state):
    with pytest.raises(CheckpointError, match=rf"NaN or infinite: {NORM}$"):
        convert({**state, NORM: state[NORM].double() * 1e300})


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_a_weight_is_no_real_number(convert, state, dtype):
    with pytest.raises(CheckpointError, match=NORM):
        convert({**state, NORM: state[NORM].to(dtype)})


def test_a_weight_is_sparse(convert, state):
    with pytest.raises(CheckpointError, match=LINEAR):
        convert({**state, LINEAR: state[LINEAR].to_sparse()})


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("image_encoder.stages.0.weight", "another SAM-like model, which this library has no model for"),
        ("image_encoder.fuse_stage2.op_list.0.weight", "EdgeSAM, which"),
        ("memory_attention.norm.weight", "SAM 2, which"),
        ("spatial_perceiver.norm.weight", "EdgeTAM, which"),
        ("mask_decoder.hf_token.weight", "HQ-SAM, which"),
        ("vision_encoder.backbone.x", "SAM 2 or a relative, in the layout of transformers, which"),
        ("encoder.weight", r"no model of this library \(its first keys: encoder\.weight"),
    ],
)
def test_other_family(convert, state, key, family):
    # What the families share with RepViT-SAM must not mislead.
    parts = ("mask_decoder.", "image_encoder.neck.") if key.startswith("image_encoder.") else "mask_decoder."
    shared = {k: v for k, v in state.items() if k.startswith(parts)}
    with pytest.raises(CheckpointError, match=rf"source\.pt: these are the weights of {family}"):
        convert({key: torch.zeros(3, 3), **shared})


def test_edgesam_is_named(convert, state):
    """It has RepViT's keys, and two parts more: not 302 lines about another model."""
    with pytest.raises(CheckpointError, match=r"are the weights of EdgeSAM, which this library has no model for$"):
        convert({**state, "image_encoder.fuse_stage2.op_list.0.weight": torch.zeros(3)})


def test_vit_of_another_input_side(convert):
    """Tables of positions of 4 x 4 patches in place of 8 x 8, and of 7 relative ones: trained at 64 pixels."""
    small = dataclasses.replace(
        PRESETS["tiny_vit_sam"],
        image_encoder=dataclasses.replace(PRESETS["tiny_vit_sam"].image_encoder, grid_size=4),
        image_size=64,
    )
    weights = synthetic.synthetic_state_dict(synthetic.manifest(small))
    assert weights["image_encoder.pos_embed"].shape[1] == 4
    state = {key: torch.from_numpy(value) for key, value in weights.items()}
    found, metadata = convert(state)
    assert metadata.config == small
    np.testing.assert_array_equal(found["image_encoder/pos_embed"], weights["image_encoder.pos_embed"][0])
    _, metadata = convert(state, preset="tiny_vit_sam", image_size=128)
    assert metadata.config == dataclasses.replace(small, image_size=128)
    state["image_encoder.pos_embed"] = torch.zeros(1, 4, 5, 32)
    with pytest.raises(CheckpointError, match=r"wrong shape: image_encoder\.pos_embed is \(1, 4, 5, 32\)"):
        convert(state)


def test_preset_contradicts_the_file(convert, state):
    with pytest.raises(CheckpointError, match="these are weights of tiny, not of repvit_sam_m0_9"):
        convert(state, preset="repvit_sam_m0_9")


def test_unknown_preset(convert, state):
    with pytest.raises(CheckpointError, match=r"unknown preset 'nano'; known presets: repvit_sam, .*tiny"):
        convert(state, preset="nano")


def test_image_size_is_no_multiple_of_16(convert, state):
    with pytest.raises(ValueError, match="image_size must be a positive multiple of 16, got 100"):
        convert(state, image_size=100)


def test_unknown_form(files, tmp_path):
    with pytest.raises(ValueError, match=r"form .*'fused'"):
        from_torch(files / "train.pt", tmp_path / "target.safetensors", form="fused")
    with pytest.raises(ValueError, match=r"form .*'fused'"):
        to_torch(files / "train.safetensors", tmp_path / "target.pt", form="fused")
    assert not list(tmp_path.iterdir())


def test_fused_checkpoint_can_not_become_the_training_form(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"deploy\.pt: the checkpoint is fused"):
        from_torch(files / "deploy.pt", tmp_path / "target.safetensors", form="train")
    assert not list(tmp_path.iterdir())


def test_safetensors_with_names_of_pytorch(files, arrays, tmp_path):
    save_file({f"module.{key}": value for key, value in arrays.items()}, tmp_path / "torch.safetensors")
    from_torch(tmp_path / "torch.safetensors", tmp_path / "target.safetensors")
    found, _ = checkpoint.read(tmp_path / "target.safetensors", verify=True)
    assert_same(found, checkpoint.read(files / "train.safetensors")[0])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "torch.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a safetensors file, or it is truncated"):
        from_torch(tmp_path / "cut.safetensors", tmp_path / "again.safetensors")


def test_conversion_is_reproducible(files, tmp_path):
    for name in ("one", "two"):
        from_torch(files / "train.pt", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_a_wide_half_precision_tensor_is_refused_before_it_is_widened(convert, state):
    """Two bytes of the file would be 68 GB."""
    wide = torch.ones(1, dtype=torch.float16).expand(2**17, 2**17)
    with pytest.raises(CheckpointError, match=rf"wrong shape: {LINEAR} is \(131072, 131072\)"):
        convert({**state, LINEAR: wide})

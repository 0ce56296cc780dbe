"""Files of half the size: which arrays are bfloat16 on disk, and that what is read is float32, exactly."""

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from repvit_sam_jax import PRESETS, CheckpointError, load
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.loading import read_params

ABOUT = checkpoint.Metadata(PRESETS["tiny"], "train")


@pytest.fixture(scope="module")
def arrays(tiny_train):
    return {name: np.asarray(leaf) for name, leaf in checkpoint.flatten(tiny_train[1])}


@pytest.fixture(scope="module")
def half(tiny_train, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "half.safetensors"
    checkpoint.save(path, tiny_train[1], ABOUT, "bfloat16")
    return path


def stored_types(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def rounded(array):
    """The nearest float32 whose lower 16 bits are zero; of two as near, the one with an even last bit."""
    bits = np.asarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_arrays_of_two_or_more_axes_are_bfloat16_on_disk(arrays, half, tiny_train, tmp_path):
    kinds = {name: "BF16" if array.ndim >= 2 else "F32" for name, array in arrays.items()}
    counts = {name: "I32" for name in arrays if name.endswith("/count")}
    assert counts
    assert stored_types(half) == kinds | counts
    checkpoint.save(tmp_path / "full.safetensors", tiny_train[1], ABOUT)
    assert stored_types(tmp_path / "full.safetensors") == dict.fromkeys(arrays, "F32") | counts


def test_what_is_read_is_what_was_rounded(arrays, half):
    found, about = checkpoint.read(half)
    assert about == ABOUT
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = rounded(array) if array.ndim >= 2 else array
        np.testing.assert_array_equal(found[name], expected, err_msg=name, strict=True)
    assert any((found[name] != arrays[name]).any() for name in arrays)


def test_load(half, tiny_train, tmp_path):
    """The model's params are float32, and in deploy form fused from the rounded ones."""
    checkpoint.save(tmp_path / "full.safetensors", read_params(half)[2], ABOUT)
    for form in ("train", "deploy"):
        found, expected = (
            dict(checkpoint.flatten(load(path, form=form)[1])) for path in (half, tmp_path / "full.safetensors")
        )
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(arrays, tmp_path, dtype):
    narrow = {name: a if a.dtype == np.int32 else a.astype(dtype) for name, a in arrays.items()}
    save_file(narrow, tmp_path / "narrow.safetensors", ABOUT.to_strings())
    found = dict(checkpoint.flatten(read_params(tmp_path / "narrow.safetensors")[2]))
    for name, array in narrow.items():
        assert found[name].dtype == arrays[name].dtype, name
        np.testing.assert_array_equal(found[name].astype(np.float64), array.astype(np.float64), err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_checked_as_well(arrays, tmp_path, dtype):
    first, second, *_ = (name for name in arrays if name.startswith("mask_decoder/") and arrays[name].ndim == 2)
    (count, *_) = (name for name in arrays if name.endswith("/count"))
    wrong = {
        first: np.full(arrays[first].shape, np.nan, dtype),
        second: arrays[second][:-1].astype(dtype),
        count: np.ones((), dtype),
    }
    save_file(arrays | wrong, tmp_path / "wrong.safetensors", ABOUT.to_strings())
    with pytest.raises(CheckpointError, match=r"3 problem\(s\)") as caught:
        read_params(tmp_path / "wrong.safetensors")
    for line in (f"infinite: {first}", f"wrong shape: {second} ", f"wrong type: {count} is float32, expected int32"):
        assert line in str(caught.value)

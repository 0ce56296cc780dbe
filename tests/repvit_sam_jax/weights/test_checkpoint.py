"""Files of half the size: which arrays are bfloat16 on disk, and that what is read is float32, exactly."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
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


def test_the_same_content_gives_the_same_bytes(tiny_train, tmp_path):
    """safetensors writes metadata in an order that differs between calls; eight orders of six would be luck."""
    metadata = checkpoint.Metadata(PRESETS["tiny"], "train", "a" * 64, "a tést")
    written = set()
    for i in range(8):
        checkpoint.save(tmp_path / f"{i}.safetensors", tiny_train[1], metadata)
        written.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(written) == 1
    assert checkpoint.read(tmp_path / "0.safetensors", verify=True)[1] == metadata


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flipped_bits_are_noticed(tiny_train, tmp_path, dtype):
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(path, tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"), dtype)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    read_params(path, verify=True)
    for i in np.random.default_rng(0).integers(start, len(content), 20):
        flipped = bytearray(content)
        flipped[i] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"tiny\.safetensors is damaged: the SHA-256 of its arrays is"):
            load(path, verify=True)


def test_files_without_a_digest(tiny_train, tmp_path):
    """Those of version 0.1 load, and can't be verified."""
    path = tmp_path / "tiny.safetensors"
    arrays = {name: np.asarray(leaf) for name, leaf in checkpoint.flatten(tiny_train[1])}
    save_file(arrays, path, checkpoint.Metadata(PRESETS["tiny"], "train").to_strings())
    load(path)
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors has no digest of its arrays"):
        load(path, verify=True)


def test_digest_as_it_is_documented():
    arrays = {"b": np.arange(3, dtype=np.float32), "a/x": np.zeros((1, 2), np.int32)}
    plain = b'["a/x", "int32", [1, 2]]\0' + bytes(8) + b'["b", "float32", [3]]\0' + arrays["b"].tobytes()
    assert checkpoint.digest(arrays) == hashlib.sha256(plain).hexdigest()


def test_full_disk(tiny_train, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"tiny\.safetensors can't be written: I/O error: No space left"):
        checkpoint.save(tmp_path / "tiny.safetensors", tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"))
    assert not list(tmp_path.iterdir())

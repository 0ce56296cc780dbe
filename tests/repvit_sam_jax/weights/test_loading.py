"""`demo`, the name of the weights in the package."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import repvit_sam_jax
from repvit_sam_jax import PRESETS, Sam, load
from repvit_sam_jax.weights import checkpoint, loading
from repvit_sam_jax.weights.loading import find_weights, read_params


def assert_same(found, expected):
    found, expected = dict(checkpoint.flatten(found)), dict(checkpoint.flatten(expected))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


def test_they_lie_in_the_package():
    assert Path(repvit_sam_jax.__file__).parent / "weights" / "demo.safetensors" == loading.DEMO


@pytest.mark.parametrize("name", ["demo", Path("demo")])
def test_demo_is_the_file_in_the_package(demo, name):
    model, params = load(name)
    assert model == Sam(PRESETS["tiny"])
    assert_same(params, load(demo)[1])
    assert_same(read_params(name, "train")[2], read_params(demo, "train")[2])


def test_a_file_of_that_name_goes_before_it(demo, tiny):
    other = dict(checkpoint.flatten(tiny[1]))
    other["mask_decoder/iou_token"] = other["mask_decoder/iou_token"] + 1
    other = checkpoint.unflatten(other)
    checkpoint.save("demo", other, checkpoint.Metadata(PRESETS["tiny"], "deploy"))
    assert_same(load("demo")[1], other)
    assert_same(read_params("demo")[2], other)
    assert find_weights(None) == demo


def test_a_folder_of_that_name_does_not(demo):
    """`make demo` makes one."""
    Path("demo").mkdir()
    assert find_weights("demo") == demo


@pytest.mark.parametrize("read", [load, read_params])
def test_they_are_missing(demo, read):
    demo.unlink()
    with pytest.raises(FileNotFoundError, match=rf"model is missing from this installation.*{re.escape(str(demo))}"):
        read("demo")


@pytest.mark.parametrize("read", [load, read_params])
@pytest.mark.parametrize("name", ["other", "demo.safetensors", "sub/demo"])
def test_other_names_are_paths(demo, read, name):
    with pytest.raises(FileNotFoundError, match=f"^no checkpoint at {name}$"):
        read(name)
    Path(name).parent.mkdir(exist_ok=True)
    shutil.copy(demo, name)
    read(name)

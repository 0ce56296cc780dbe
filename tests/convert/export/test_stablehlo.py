"""`jax.export` stablehlo_files: read back with JAX alone, for other numbers of images and prompts."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from convert.export import stablehlo
from convert.export.source import read_source
from convert.export.stablehlo import NUM_POINTS, export_stablehlo
from convert.export.verify import ExportError
from convert.synthetic import synthetic_image, write
from repvit_sam_jax import PRESETS, Prompts, transforms

pytestmark = pytest.mark.torch


def prompts(b, p):
    rng = np.random.default_rng(0)
    valid = np.arange(NUM_POINTS) < rng.integers(1, 5, (b, p, 1))
    return rng.uniform(0, 128, (b, p, NUM_POINTS, 2)).astype(np.float32), np.ones(valid.shape, np.int32), valid


def test_platforms_and_symbolic_shapes(stablehlo_file):
    exported = jax.export.deserialize(bytearray(stablehlo_file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval.shape[:2]) for aval in exported.in_avals[1:]] == ["(b, p)"] * 3
    assert exported.out_avals[1].shape[2:] == (4, 32, 32)


def test_loading_needs_jax_alone(stablehlo_file, checkpoint, tmp_path):
    """In a process that may import nothing of this project, three images of two prompts each."""
    images = transforms.preprocess([synthetic_image(96, 128, seed) for seed in range(3)], 128)
    coords, labels, valid = prompts(3, 2)
    np.savez(tmp_path / "given.npz", images=images, coords=coords, labels=labels, valid=valid)
    code = f"""
import sys, jax, numpy as np
given = np.load("given.npz")
exported = jax.export.deserialize(bytearray(open({str(stablehlo_file)!r}, "rb").read()))
jax.config.update("jax_default_matmul_precision", "highest")
results = jax.jit(exported.call)(*given.values())
np.savez("found.npz", *results)
assert not {{"repvit_sam_jax", "flax", "torch"}} & set(sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    embeddings, masks, iou = np.load(tmp_path / "found.npz").values()
    source = read_source(checkpoint)
    expected = source.model.encode(source.params, images)
    np.testing.assert_allclose(embeddings, expected, atol=2e-4)
    expected_masks, expected_iou = source.model.decode_all(source.params, expected, Prompts(coords, labels, valid))
    np.testing.assert_allclose(masks, expected_masks, atol=2e-5)
    np.testing.assert_allclose(iou, expected_iou, atol=2e-5)


@pytest.mark.parametrize("function", ["encode", "decode"])
def test_halves(checkpoint, tmp_path, function):
    report = export_stablehlo(checkpoint, tmp_path / "half", function=function, platforms=["cpu"], resolution=64)
    assert report.passed
    assert {row.stage for row in report.rows} == (
        {"embedding"} if function == "encode" else {"low_res_masks", "iou_predictions"}
    )


def test_without_cpu_it_is_compared_all_the_same(checkpoint, tmp_path, monkeypatch):
    """By the same function lowered for the CPU as well; what is written is for the TPU alone."""
    export_ = lambda path: export_stablehlo(checkpoint, path, function="encode", platforms=["tpu"], resolution=64)
    report = export_(tmp_path / "half")
    assert [row.stage for row in report.rows] == ["embedding"]
    assert report.passed
    assert jax.export.deserialize(bytearray((tmp_path / "half").read_bytes())).platforms == ("tpu",)
    faithful = stablehlo.serialize
    halved = lambda source: dataclasses.replace(source, params=jax.tree.map(lambda x: x / 2, source.params))
    monkeypatch.setattr(stablehlo, "serialize", lambda source, *rest: faithful(halved(source), *rest))
    with pytest.raises(ExportError, match="past tolerance in 1 comparisons and was not written"):
        export_(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_more_weights_than_an_artifact_holds(checkpoint, tmp_path, monkeypatch):
    """The decoder alone has less, and is written."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(read_source(checkpoint).params))
    monkeypatch.setattr(stablehlo, "LARGEST", size - 1)
    with pytest.raises(ValueError, match=r"tiny has 0\.0 GB of weights, and .* 2 GiB; `convert onnx` takes them"):
        export_stablehlo(checkpoint, tmp_path / "whole")
    export_stablehlo(checkpoint, tmp_path / "half", function="decode", platforms=["cpu"], resolution=64)
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_refuses(checkpoint, stablehlo_file, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--platforms takes some of cpu,cuda,rocm,tpu, got xpu"):
        export_stablehlo(checkpoint, tmp_path / "out", platforms=["cpu", "xpu"])
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        export_stablehlo(checkpoint, tmp_path)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="has the name of a checkpoint"):
        export_stablehlo(checkpoint, checkpoint)
    assert checkpoint.read_bytes() == before
    write(tmp_path / "other.pt", PRESETS["tiny"], seed=4)
    monkeypatch.setattr(stablehlo, "serialize", lambda *_: bytearray(stablehlo_file.read_bytes()))
    with pytest.raises(ValueError, match="tiny in stablehlo is past tolerance"):
        export_stablehlo(tmp_path / "other.pt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]

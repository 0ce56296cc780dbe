"""`jax.export` artifacts: read back with JAX alone, for other numbers of images and prompts."""

import functools

import jax
import numpy as np
import pytest

from convert.export import stablehlo
from convert.export.source import read_source
from convert.export.stablehlo import NUM_POINTS, export_stablehlo
from convert.export.verify import ExportError
from convert.synthetic import synthetic_image
from repvit_sam_jax import Prompts, Sam, transforms
from tests.helpers.examples import EXAMPLES, run

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def stablehlo_file(shallow, tmp_path_factory):
    path = tmp_path_factory.mktemp("stablehlo") / "model.stablehlo"
    report = export_stablehlo(shallow, path)
    assert report.passed
    assert len(report.rows) > 10
    return path


def prompts(b, p):
    rng = np.random.default_rng(0)
    valid = np.arange(NUM_POINTS) < rng.integers(1, 5, (b, p, 1))
    return rng.uniform(0, 128, (b, p, NUM_POINTS, 2)).astype(np.float32), np.ones(valid.shape, np.int32), valid


def test_platforms_and_symbolic_shapes(stablehlo_file):
    exported = jax.export.deserialize(bytearray(stablehlo_file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval.shape[:2]) for aval in exported.in_avals[1:]] == ["(b, p)"] * 3
    assert exported.out_avals[1].shape[2:] == (4, 32, 32)


def test_loading_needs_jax_alone(stablehlo_file, shallow, tmp_path):
    """In a process that may import nothing of this project: the example, then three images of two prompts each."""
    (tmp_path / "model.stablehlo").symlink_to(stablehlo_file)
    images = transforms.preprocess([synthetic_image(96, 128, seed) for seed in range(3)], 128)
    coords, labels, valid = prompts(3, 2)
    np.savez(tmp_path / "given.npz", images=images, coords=coords, labels=labels, valid=valid)
    code = f"""
{EXAMPLES["stablehlo"]}
assert low_res_masks.shape == (2, 1, 4, 32, 32)
import jax, numpy as np
from pathlib import Path
given = np.load("given.npz")
exported = jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
jax.config.update("jax_default_matmul_precision", "highest")
results = jax.jit(exported.call)(*given.values())
np.savez("found.npz", *results)
"""
    run(code, tmp_path)
    embeddings, masks, iou = np.load(tmp_path / "found.npz").values()
    source = read_source(shallow)
    encode = functools.partial(jax.jit(Sam.encode, static_argnums=0), source.model, source.params)
    expected = np.concatenate([encode(images[:2]), encode(images[1:])[1:]])  # by the program that the file was held to
    np.testing.assert_allclose(embeddings, expected, atol=2e-4)
    decode = jax.jit(Sam.decode, static_argnums=(0, 4))
    expected_masks, expected_iou = decode(source.model, source.params, expected, Prompts(coords, labels, valid), None)
    np.testing.assert_allclose(masks, expected_masks, atol=2e-5)
    np.testing.assert_allclose(iou, expected_iou, atol=2e-5)


def test_a_half_of_more_weights_than_an_artifact_holds(shallow, tmp_path, monkeypatch):
    """The decoder alone has less, and is written."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(read_source(shallow).params))
    monkeypatch.setattr(stablehlo, "LARGEST", size - 1)
    with pytest.raises(ValueError, match=r"tiny has 0\.0 GB of weights, and .* 2 GiB; `convert onnx` takes them"):
        export_stablehlo(shallow, tmp_path / "whole")
    report = export_stablehlo(shallow, tmp_path / "half", function="decode", platforms=["cpu"])
    assert report.passed
    assert {row.name for row in report.rows} == {"low_res_masks", "iou_predictions"}
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_without_cpu_it_is_compared_all_the_same(shallow, other, tmp_path, monkeypatch):
    """By the same function lowered for the CPU as well; what is written is for the TPU alone."""
    made = {}

    def recording(source, function, platforms):
        return made.setdefault(tuple(platforms), serialize(source, function, platforms))

    export_ = lambda weights, path: export_stablehlo(weights, path, function="encode", platforms=["tpu"])
    serialize = stablehlo.serialize
    monkeypatch.setattr(stablehlo, "serialize", recording)
    report = export_(shallow, tmp_path / "half")
    assert [row.name for row in report.rows] == ["embedding"]
    assert report.passed
    assert jax.export.deserialize(bytearray((tmp_path / "half").read_bytes())).platforms == ("tpu",)
    assert set(made) == {("tpu",), ("cpu", "tpu")}
    monkeypatch.setattr(stablehlo, "serialize", lambda _source, _function, platforms: made[tuple(platforms)])
    with pytest.raises(ExportError, match=r"past tolerance in 1 comparisons, embedding .* and was not written"):
        export_(other, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "other.safetensors"]


def test_refuses(shallow, other, stablehlo_file, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--platforms takes some of cpu,cuda,rocm,tpu, got xpu"):
        export_stablehlo(shallow, tmp_path / "out", platforms=["cpu", "xpu"])
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        export_stablehlo(shallow, tmp_path)
    before = shallow.read_bytes()
    with pytest.raises(ValueError, match="has the name of a checkpoint"):
        export_stablehlo(shallow, shallow)
    assert shallow.read_bytes() == before
    monkeypatch.setattr(stablehlo, "serialize", lambda *_: bytearray(stablehlo_file.read_bytes()))
    with pytest.raises(ValueError, match="tiny in stablehlo, float64 is past tolerance"):
        export_stablehlo(other, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


@pytest.mark.slow(group="export")
@pytest.mark.parametrize("function", ["segment", "encode", "decode"])
def test_tiny(checkpoint, tmp_path, function):
    options = {} if function == "segment" else {"platforms": ["cpu"], "image_size": 64}
    report = export_stablehlo(checkpoint, tmp_path / "out", function=function, **options)
    assert report.passed
    stages = {"encode": {"embedding"}, "decode": {"low_res_masks", "iou_predictions"}}
    assert {row.name for row in report.rows} == stages.get(function, set.union(*stages.values()))

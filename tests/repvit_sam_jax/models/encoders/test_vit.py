"""SAM's ViT encoders: against PyTorch, in chunks and at other sizes; compilation of ViT-H."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert.parity import parity
from convert.synthetic import write
from convert.torch_models.vit import Attention as TorchAttention
from repvit_sam_jax import PRESETS, Sam, load, split_batch_stats
from repvit_sam_jax.models.encoders import vit
from repvit_sam_jax.models.layers import Keys
from repvit_sam_jax.weights.checkpoint import Metadata, save
from tests.helpers.measures import relative_rms
from tests.helpers.models import encode, encode_train, random_params

pytestmark = pytest.mark.torch
TINY = PRESETS["tiny_vit_sam"]


@pytest.fixture(scope="module")
def model_and_params():
    model = Sam(TINY)
    return model, random_params(model, seed=2)


@pytest.mark.slow(group="models")
def test_parity_per_stage(tmp_path):
    """Windowed blocks (padded: 8 is no multiple of 3), global blocks, and the scan over groups of both."""
    write(tmp_path / "model.pt", TINY)
    report = parity(tmp_path / "model.pt")
    assert report.preset == "tiny_vit_sam"
    assert {row.name for row in report.rows if row.form == "deploy"} >= {"stem", "blocks.0", "blocks.3", "neck"}
    assert {row.tolerance for row in report.rows} == {1e-5}
    assert report.passed, report.to_text()


def test_another_image_size_interpolates_positions(tmp_path):
    """Windowed blocks (padded: 10 is no multiple of 3), global blocks, and the scan over groups of both."""
    write(tmp_path / "model.pt", TINY)
    report = parity(tmp_path / "model.pt", image_size=160)
    assert report.preset == "tiny_vit_sam"
    assert {row.name for row in report.rows if row.form == "deploy"} >= {"stem", "blocks.0", "blocks.3", "neck"}
    assert {row.tolerance for row in report.rows} == {1e-5}
    assert report.passed, report.to_text()


@pytest.mark.parametrize(("size", "table"), [(5, 5), (7, 5), (3, 6)])
def test_attention_equals_pytorch(size, table):
    """Also where the table of relative positions is for another size."""
    theirs = TorchAttention(16, 2, table)
    torch.nn.init.normal_(theirs.rel_pos_h)
    torch.nn.init.normal_(theirs.rel_pos_w)
    ours = vit.ViTAttention(16, 2, table, dtype=jnp.dtype("float32"), rngs=Keys(jax.random.key(0)))
    weights = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    linear = {n: {"kernel": weights[f"{n}.weight"].T, "bias": weights[f"{n}.bias"]} for n in ("qkv", "proj")}
    nnx.update(ours, {**linear, "rel_pos_h": weights["rel_pos_h"], "rel_pos_w": weights["rel_pos_w"]})
    x = np.random.default_rng(0).normal(size=(2, size, size, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=2e-6)


def test_queries_in_chunks_give_the_same(model_and_params, monkeypatch):
    model, params = model_and_params
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 128, 128, 3)), jnp.float32)
    expected = encode(model, params, images)
    monkeypatch.setattr(vit, "QUERY_CHUNK", 16)
    chunked = jax.jit(lambda p, x: model.encode(p, x))
    assert str(jax.make_jaxpr(chunked)(params, images)).count("scan[") > 1  # the blocks, and the chunks within
    assert relative_rms(chunked(params, images), expected) < 2e-6


def test_forms_are_the_same_and_there_are_no_statistics(model_and_params, tmp_path):
    model, params = model_and_params
    assert split_batch_stats(params)[1] == {}
    images = jnp.zeros((1, 128, 128, 3))
    embeddings, stats = encode_train(Sam(TINY, "train"), params, images)
    assert stats == {}
    assert relative_rms(embeddings, encode(model, params, images)) < 2e-6
    save(tmp_path / "m.safetensors", params, Metadata(TINY, "deploy"))
    for form in ("train", "deploy"):
        assert load(tmp_path / "m.safetensors", form=form)[0] == Sam(TINY, form)


def test_bfloat16(model_and_params):
    model, params = model_and_params
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 128, 128, 3)), jnp.float32)
    half = encode(Sam(TINY, dtype="bfloat16"), params, images)
    assert half.dtype == jnp.float32
    assert relative_rms(half, encode(model, params, images)) < 5e-2


def test_vit_h_traces_to_a_compact_program():
    """The groups of blocks are one scan: eight blocks are traced, not thirty-two."""
    model = Sam.from_preset("sam_vit_h", dtype="bfloat16")
    jaxpr = jax.make_jaxpr(model.encode)(model.abstract_params(), jax.ShapeDtypeStruct((1, 1024, 1024, 3), np.float32))
    assert str(jaxpr).count("custom_jvp_call[") == 8

"""Low-rank updates: nothing at the start, a product in the kernels later, plain checkpoints at the end."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from repvit_sam_jax import load
from tests.helpers.micro import PROMPTS
from tests.helpers.training import make_batch, prepare, take, unlike
from train import lora
from train.export import export
from train.loop import Inputs, train
from train.state import make_student

LORA = dataclasses.replace(
    PROMPTS, student="micro_vit", trained=("lora", "mask_decoder"), lora_rank=2, losses=PROMPTS.losses
)


@pytest.fixture
def batch(rng):
    size = {"image": rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8), "skipped": np.zeros(4, np.int32)}
    given = make_batch(rng)
    given["masks"], given["size"] = given["masks"][:, :, ::2, ::2], given["size"] // 2
    return {**given, **size, "boxes": given["boxes"] / 2}


def test_a_step(batch):
    student, _, before = prepare(LORA)
    assert student.form == "train"
    encoder = before.frozen["image_encoder"]
    chex.assert_trees_all_equal(before.result["image_encoder"], encoder)
    after, metrics = take(LORA, prepare(LORA), batch, steps=2)
    assert np.isfinite(metrics["loss"])
    assert not unlike(before.frozen, after.frozen)
    assert {name.partition("/")[0] for name in unlike(before.trained, after.trained)} == {"lora", "mask_decoder"}
    for name, update in jax.device_get(after.trained["lora"]).items():
        assert update["a"].shape[1] == update["b"].shape[0] == 2
        kernel = np.asarray(encoder["blocks"][name]["attn"]["qkv"]["kernel"], np.float64)
        expected = kernel + update["a"].astype(np.float64) @ update["b"]
        found = after.result["image_encoder"]["blocks"][name]["attn"]["qkv"]["kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(found - kernel).max() > 1e-4
    changed = unlike(before.result["image_encoder"], after.result["image_encoder"])
    assert changed == {f"blocks/{name}/attn/qkv/kernel" for name in encoder["blocks"]}


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_step_of_adam_changes_kernels_by_the_learning_rate(rank, rng):
    encoder = {"blocks": {"0": {"attn": {"qkv": {"kernel": np.zeros((256, 768)), "bias": np.zeros(768)}}}}}
    a = np.asarray(lora.updates(encoder, rank, jax.random.key(1))["0"]["a"])
    step = 1e-3 * rng.choice([-1, 1], (rank, 768))
    assert np.sqrt(np.mean(np.square(a @ step))) == pytest.approx(1e-3, rel=0.2)


def test_only_vits_of_sam_have_it():
    with pytest.raises(ValueError, match=r"lora is for the attention of SAM's ViTs.* micro is a RepViT"):
        make_student(dataclasses.replace(LORA, student="micro"))
    with pytest.raises(ValueError, match="in place of image_encoder"):
        dataclasses.replace(LORA, trained=("lora", "image_encoder"))


@pytest.mark.slow(group="train")
def test_a_run_and_its_export(photos, tmp_path):
    state = train(dataclasses.replace(LORA, steps=3), tmp_path / "run", Inputs((photos,)))
    assert export(tmp_path / "run", tmp_path / "out.safetensors") == 3
    model, params = load(tmp_path / "out.safetensors")
    assert model.config.name == "micro_vit"
    chex.assert_trees_all_equal(params, jax.device_get(state.result))

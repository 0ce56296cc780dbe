"""What comes out of a run: files, means of runs, starts of others; and the commands from first to last."""

import dataclasses
import json
import shutil
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from repvit_sam_jax import load
from tests.helpers.micro import ENCODER
from tests.helpers.training import lines, prepare, unlike
from train import __main__ as command
from train import loop
from train.export import export
from train.recipe import to_json
from train.state import initial_params


def test_export(whole, tmp_path):
    run, state = whole
    assert export(run, tmp_path / "deploy.safetensors") == 8
    assert export(run, tmp_path / "train.safetensors", form="train", which=6) == 6
    model, params = load(tmp_path / "deploy.safetensors")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    student = loop.make_student(ENCODER)
    found, expected = jax.jit(model.encode)(params, images), jax.jit(student.encode)(state.result, images)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
    load(tmp_path / "train.safetensors", form="train")
    export(run, tmp_path / "half.safetensors", dtype="bfloat16")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "deploy")]
    assert sizes[0] < 0.7 * sizes[1]  # of so small a model names and biases are a good part
    for half, full in zip(*map(jax.tree.leaves, (load(tmp_path / "half.safetensors")[1], params)), strict=True):
        expected = full.astype(jnp.bfloat16).astype(jnp.float32) if full.ndim >= 2 else full
        np.testing.assert_array_equal(half, expected, strict=True)
    with pytest.raises(ValueError, match="has no best checkpoint, for it never was evaluated"):
        export(run, tmp_path / "best.safetensors", which="best")
    with pytest.raises(ValueError, match="has no checkpoint of step 5"):
        export(run, tmp_path / "x.safetensors", which=5)
    with pytest.raises(FileNotFoundError, match="is no run"):
        export(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "published.pt").touch()
    with pytest.raises(ValueError, match=r"published\.pt: the file's name must end in \.safetensors"):
        export(run, tmp_path / "published.pt")
    assert not (tmp_path / "published.pt").stat().st_size


def test_export_of_a_mean(whole, other, tmp_path):
    run, state = whole
    assert export(run, tmp_path / "mean.safetensors", mean_with=[other[0]], form="train") == 8
    mean = load(tmp_path / "mean.safetensors", form="train")[1]
    halved = lambda x, y: ((np.asarray(x, np.float64) + np.asarray(y, np.float64)) / 2).astype(x.dtype)
    chex.assert_trees_all_close(mean, jax.tree.map(halved, state.result, other[1].result), rtol=1e-6, atol=1e-8)
    export(other[0], tmp_path / "other.safetensors", form="train")
    export(run, tmp_path / "again.safetensors", mean_with=[tmp_path / "other.safetensors"], form="train")
    chex.assert_trees_all_equal(load(tmp_path / "again.safetensors", form="train")[1], mean)
    larger = shutil.copytree(run, tmp_path / "larger")
    recipe = json.loads((larger / "recipe.json").read_text()) | {"image_size": 128}
    (larger / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="larger has another student than"):
        export(run, tmp_path / "x.safetensors", mean_with=[larger])
    assert not (tmp_path / "x.safetensors").exists()


def test_a_run_can_start_from_an_export(whole, tmp_path):
    run, state = whole
    export(run, tmp_path / "train.safetensors", form="train")
    student, teacher, _ = prepare(ENCODER)
    recipe = dataclasses.replace(ENCODER, init=str(tmp_path / "train.safetensors"))
    assert not unlike(initial_params(recipe, student, teacher), state.result)


def test_commands(monkeypatch, capsys, whole, photos, tmp_path):
    """Embed, distil, export; and an expected error is one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        command.main()

    run("recipes")
    assert "edgesam_stage2: repvit_sam, prompts in the loop" in capsys.readouterr().out
    cache = ["random:micro_vit", tmp_path / "cache", "--data", photos, "--image-size", 64, "--dtype", "float32"]
    run("embed", *cache)
    assert "24 photos" in capsys.readouterr().out
    (tmp_path / "recipe.json").write_text(to_json(dataclasses.replace(ENCODER, teacher="random:nothing", seed=1)))
    settings = ["--set", "teacher=random:micro_vit", "seed=0", "log_every=1", "checkpoint_every=100"]
    distil = "distill", tmp_path / "recipe.json", tmp_path / "run", "--data", photos
    run(*distil, "--embeddings", tmp_path / "cache", *settings)
    losses = [line["loss"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == ENCODER.steps
    assert losses[2] == pytest.approx(lines(whole[0] / "metrics.jsonl")[1]["loss"], rel=2e-3)
    run("export", tmp_path / "run", tmp_path / "out.safetensors", "--dtype", "bfloat16")
    assert "step 8, deploy form" in capsys.readouterr().out
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16", "F32"}  # noqa: SIM118
    with pytest.raises(SystemExit) as exit_:
        run("distill", "smoke", tmp_path / "other", "--data", tmp_path / "nowhere")
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error

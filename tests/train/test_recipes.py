"""Recipes: what can be set, what is refused, and that every one of them fits together at full size."""

import contextlib
import dataclasses
import hashlib
import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from repvit_sam_jax import config
from repvit_sam_jax.weights.loading import read_params
from tests.helpers.micro import ENCODER
from train import __main__ as command
from train import loop
from train.optim import make_optimizer
from train.recipe import Losses, from_json, get_recipe, recipes, to_json
from train.state import abstract_batch, abstract_state, initial_params, make_student
from train.step import make_step
from train.teacher import abstract_teacher, load_teacher, needed_params


def test_settings():
    recipe = get_recipe(
        "edgesam_stage2",
        [
            "optimizer.learning_rate=2e-3",
            "optimizer.clip_norm=None",
            "trained=image_encoder",
            "losses.padding=true",
            "steps=7",
            "prompting.targets=ground_truth",
            "init=x.safetensors",
            "image_size=512",
            "dtype=float32",
        ],
    )
    assert recipe.optimizer.learning_rate == 2e-3
    assert recipe.optimizer.clip_norm is None
    assert recipe.trained == ("image_encoder",)
    assert recipe.losses.padding is True
    assert (recipe.steps, recipe.epochs) == (7, None)
    assert (recipe.init, recipe.image_size, recipe.dtype) == ("x.safetensors", 512, "float32")
    assert recipe.prompting == dataclasses.replace(recipes()["edgesam_stage2"].prompting, targets="ground_truth")
    assert not recipe.needs_teacher


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.momentum=1", "recipes have no field 'optimizer.momentum'; Optimizer has learning_rate, final"),
        ("batch=1", "recipes have no field 'batch'; Recipe has name, student"),
        ("losses=1", "losses is a group of fields: set one of mse, padding"),
        ("batch_size=many", "batch_size takes int, got 'many'"),
        ("dtype=float16", r"dtype takes \('float32', 'bfloat16'\), got 'float16'"),
        ("losses.padding=perhaps", "losses.padding takes bool, got 'perhaps'"),
        ("batch_size", "--set takes key=value, got 'batch_size'"),
        ("batch_size=0", "batch_size must be positive, got 0"),
        ("prompting.rounds=0", "rounds must be positive, got 0"),
        ("optimizer.warmup=-1", "optimizer.warmup must be from 0 to 1, got -1"),
        ("prompting.box_probability=7", "prompting.box_probability must be from 0 to 1, got 7"),
        ("micro_batches=3", "batch_size 8 is not divisible by micro_batches 3"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate must not be negative, got -1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must not be negative, got nan"),
        ("losses.bce=-5", "losses.bce must not be negative, got -5"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm must not be negative, got -1"),
        ("prompting.box_noise=-1", "prompting.box_noise must not be negative, got -1"),
        ("optimizer.ema_decay=1", "optimizer.ema_decay must be from 0 to below 1, got 1"),
        ("optimizer.b2=1.5", "optimizer.b2 must be from 0 to below 1, got 1.5"),
        ("seed=3000000000", r"seed must be from 0 to 2\*\*31 - 1, got 3000000000"),
        ("trained=neck", r"trained names parts of the student, got \('neck',\)"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        get_recipe("smoke", [setting])


def test_both_lengths_and_no_loss_are_refused():
    with pytest.raises(ValueError, match="set one of epochs and steps"):
        get_recipe("smoke", ["steps=3", "epochs=1"])
    with pytest.raises(ValueError, match="all losses have weight 0"):
        get_recipe("repvit_sam_paper", ["losses.mse=0"])
    with pytest.raises(ValueError, match=r"prompting\.logits needs a prompt encoder that knows masks"):
        get_recipe("from_scratch", ["trained=mask_decoder,"])
    assert get_recipe("from_scratch", ["trained=mask_decoder,", "init=demo.safetensors"]).init
    with pytest.raises(ValueError, match=r"prompting\.logits needs a prompt encoder that knows masks"):
        get_recipe("edgesam_stage2", ["prompting.targets=ground_truth", "prompting.logits=true", "losses.mse=0"])
    with pytest.raises(ValueError, match="without losses of masks nothing teaches mask_decoder, and weight decay"):
        get_recipe("repvit_sam_paper", ["trained=image_encoder,mask_decoder"])
    with pytest.raises(ValueError, match="box_probability 1 nothing teaches the masks for single points, and weight"):
        get_recipe("from_scratch", ["prompting.box_probability=1"])
    with pytest.raises(ValueError, match="box_probability 0 nothing teaches the mask for boxes and several points"):
        get_recipe("from_scratch", ["prompting.box_probability=0", "prompting.rounds=1"])
    assert get_recipe("from_scratch", ["prompting.box_probability=0"]).prompting.rounds == 2
    assert get_recipe("from_scratch", ["prompting.box_probability=1", "optimizer.weight_decay=0"])
    assert get_recipe("from_scratch", ["prompting.box_probability=1", "trained=image_encoder,", "init=demo"])
    with pytest.raises(ValueError, match=r"no recipe 'sam'; there are .*edgesam_stage1, .*smoke"):
        get_recipe("sam")


@pytest.mark.parametrize("name", sorted(recipes()))
def test_json(name, tmp_path):
    recipe = recipes()[name]
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    assert get_recipe(str(tmp_path / "recipe.json")) == recipe
    damaged = json.loads(to_json(recipe))
    del damaged["losses"]
    with pytest.raises(ValueError, match="not a recipe of this version"):
        from_json(json.dumps(damaged))


def test_length():
    assert recipes()["repvit_sam_paper"].num_steps(112_000) == 112_000
    assert recipes()["smoke"].num_steps(112_000) == 40


def fits_together(recipe, teacher, *, cached):
    """Shapes alone: a step gives a state like the one that it is given."""
    student = make_student(recipe)
    teacher, params = abstract_teacher(teacher, student.config.image_size, recipe.dtype)
    params = needed_params(params, encoder=not cached, decoder=recipe.asks_teacher)
    state = abstract_state(recipe, student, make_optimizer(recipe, 10))
    batch = abstract_batch(recipe, student, teacher if cached else None)
    after, metrics = jax.eval_shape(make_step(recipe, student, teacher, 10), state, params, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {metric.shape for metric in metrics.values()} == {()}
    return metrics


@pytest.mark.slow(group="train")
@pytest.mark.parametrize(("name", "cached"), [("repvit_sam_paper", True), ("edgesam_stage2", True), ("smoke", False)])
def test_the_step_fits_together(name, cached):
    """At full size, with the published teacher."""
    fits_together(recipes()[name], "tiny" if name == "smoke" else "sam_vit_h", cached=cached)


def test_the_step_of_small_models_fits_together():
    """In half precision, with a cache of embeddings."""
    stage2 = recipes()["edgesam_stage2"]
    losses, prompting = dataclasses.replace(stage2.losses, mse=1.0), dataclasses.replace(stage2.prompting, rounds=1)
    recipe = dataclasses.replace(stage2, student="micro", losses=losses, prompting=prompting)
    metrics = fits_together(recipe, "micro_vit", cached=True)
    assert set(metrics) == {"mse", "bce", "dice", "loss", "learning_rate", "grad_norm", "update_norm", "skipped"}


@pytest.fixture
def wide_teacher(monkeypatch):
    """A preset whose embeddings have twice the student's channels."""
    micro = config.MODELS["micro_vit"]
    wide = dataclasses.replace(
        micro, name="wide", mask_decoder=dataclasses.replace(micro.mask_decoder, embed_dim=32, iou_head_hidden_dim=32)
    )
    monkeypatch.setitem(config.MODELS, "wide", wide)
    return "wide"


def test_a_cache_holds_the_channels_of_its_teacher(wide_teacher):
    """FLOPs of a step and its compilation ahead of time see a batch as the cache makes it."""
    recipe = dataclasses.replace(
        recipes()["edgesam_stage2"], student="micro", decoder="init", losses=Losses(mse=0, bce=1.0)
    )
    assert "mse" not in fits_together(recipe, wide_teacher, cached=True)


def test_embeddings_of_other_channels_are_not_compared(wide_teacher, photos, tmp_path):
    recipe = dataclasses.replace(ENCODER, teacher=f"random:{wide_teacher}")
    expected = r"teacher wide have 32 channels, those of the student micro 16: .*losses\.mse=0"
    with pytest.raises(ValueError, match=expected):
        loop.train(recipe, tmp_path / "run", loop.Inputs((photos,)))
    with pytest.raises(ValueError, match=expected):
        fits_together(recipe, wide_teacher, cached=True)


def test_student_and_teacher_may_be_the_demonstration_model(demo):
    recipe = dataclasses.replace(get_recipe("smoke"), student="tiny", init="demo")
    params = initial_params(recipe, make_student(recipe), None)
    jax.tree.map(np.testing.assert_array_equal, params, read_params(demo, "train")[2])
    teacher = load_teacher("demo", 128, "float32")
    assert teacher.identity == hashlib.sha256(demo.read_bytes()).hexdigest()
    jax.tree.map(np.testing.assert_array_equal, teacher.params, read_params(demo, "deploy")[2])


def test_exit_status_of_a_run_that_was_left(monkeypatch, photos, tmp_path):
    """As a shell has it for SIGTERM: the next command of a script is not to take the run for finished."""
    monkeypatch.setattr(sys, "argv", ["train", "distill", "smoke", str(tmp_path / "run"), "--data", photos])
    for finished, status in ((False, 143), (True, None)):
        run = SimpleNamespace(fit=lambda **_: None, finished=finished)
        monkeypatch.setattr("train.loop.Run", lambda *_, run=run: run)
        left = contextlib.nullcontext() if status is None else pytest.raises(SystemExit)
        with left as exit_:
            command.main()
        assert status is None or exit_.value.code == status

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

from repvit_sam_jax import PRESETS, Sam, checkpoint, crf
from repvit_sam_jax.config import MODELS, get_config
from repvit_sam_jax.loading import read_params
from tests.helpers.models import make_prompts
from train import __main__ as command
from train.optim import make_optimizer
from train.recipe import from_json, get_recipe, recipes, to_json
from train.state import abstract_batch, abstract_state, initial_params, make_student, read_start
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
        ("losses=1", "losses is a group of fields: set one of mse, cosine"),
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
        get_recipe("demo", ["trained=mask_decoder,"])
    assert get_recipe("demo", ["trained=mask_decoder,", "init=demo.safetensors"]).init
    with pytest.raises(ValueError, match=r"prompting\.logits needs a prompt encoder that knows masks"):
        get_recipe("edgesam_stage2", ["prompting.targets=ground_truth", "prompting.logits=true", "losses.mse=0"])
    with pytest.raises(ValueError, match="without losses of masks nothing teaches mask_decoder, and weight decay"):
        get_recipe("repvit_sam_paper", ["trained=image_encoder,mask_decoder"])
    with pytest.raises(ValueError, match="box_probability 1 nothing teaches the masks for single points, and weight"):
        get_recipe("demo", ["prompting.box_probability=1"])
    with pytest.raises(ValueError, match="box_probability 0 nothing teaches the mask for boxes and several points"):
        get_recipe("demo", ["prompting.box_probability=0", "prompting.rounds=1"])
    assert get_recipe("demo", ["prompting.box_probability=0"]).prompting.rounds == 2
    assert get_recipe("demo", ["prompting.box_probability=1", "optimizer.weight_decay=0"])
    assert get_recipe("demo", ["prompting.box_probability=1", "trained=image_encoder,", "init=demo"])
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
    batch = abstract_batch(recipe, student, cached=cached)
    after, metrics = jax.eval_shape(make_step(recipe, student, teacher, 10), state, params, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {metric.shape for metric in metrics.values()} == {()}
    return metrics


@pytest.mark.slow(group="train")
@pytest.mark.parametrize(("name", "cached"), [("repvit_sam_paper", True), ("edgesam_stage2", True), ("smoke", False)])
def test_the_step_fits_together(name, cached):
    """At full size, with the published teacher."""
    fits_together(recipes()[name], "tiny_vit_sam" if name == "smoke" else "sam_vit_h", cached=cached)


def test_the_step_of_small_models_fits_together():
    """In half precision, with a cache of embeddings."""
    stage2 = recipes()["edgesam_stage2"]
    losses, prompting = dataclasses.replace(stage2.losses, mse=1.0), dataclasses.replace(stage2.prompting, rounds=1)
    recipe = dataclasses.replace(stage2, student="micro", losses=losses, prompting=prompting)
    metrics = fits_together(recipe, "micro_vit", cached=True)
    assert set(metrics) == {"mse", "bce", "dice", "loss", "learning_rate", "grad_norm", "update_norm", "skipped"}


@pytest.mark.parametrize("kind", ["tiny_drawing", "tiny_crf"])
def test_weights_without_a_part_start_a_model_that_has_it(request, tiny_train, kind, tmp_path, monkeypatch):
    """All that the file holds is taken over, and its image size is none of the student's."""
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"))
    monkeypatch.setitem(MODELS, kind, request.getfixturevalue(kind)[0].config)
    student = make_student(dataclasses.replace(get_recipe("smoke"), student=kind, image_size=64))
    config, params = read_start(path, student, 0)
    assert config == dataclasses.replace(student.config, image_size=128)
    assert jax.tree.structure(params) == jax.tree.structure(student.abstract_params())
    found = dict(jax.tree_util.tree_leaves_with_path(params))
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(tiny_train[1]):
        np.testing.assert_array_equal(found[leaf_path], leaf)
    assert len(found) > len(jax.tree.leaves(tiny_train[1]))
    assert read_start(path, Sam(PRESETS["tiny_mobile_sam"], "train"), 0)[0] == PRESETS["tiny"]


@pytest.mark.slow(group="train")
def test_drawn_prompts_start_by_cutting_masks_off_at_boxes(tiny_train, tiny_drawing, tmp_path, monkeypatch, rng):
    """Weights of a model that does not draw start one that does."""
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"))
    monkeypatch.setitem(PRESETS, "drawing", tiny_drawing[0].config)
    monkeypatch.setitem(MODELS, "drawing", tiny_drawing[0].config)
    recipe = dataclasses.replace(get_recipe("smoke"), student="drawing", init=str(path), image_size=64)
    student = make_student(recipe)
    params = initial_params(recipe, student, None)
    assert jax.tree.structure(params) == jax.tree.structure(student.abstract_params())
    assert read_start(path, student, 0)[0] == dataclasses.replace(student.config, image_size=128)
    assert read_start(path, Sam(PRESETS["tiny_mobile_sam"], "train"), 0)[0] == PRESETS["tiny"]
    plain = Sam(get_config("tiny", 64), "train")
    jax.tree.map(np.testing.assert_array_equal, params["image_encoder"], tiny_train[1]["image_encoder"])
    side, width = plain.config.embedding_size, plain.config.embedding_channels
    embedding = rng.normal(size=(1, side, side, width)).astype(np.float32)
    box = np.array([[[8.0, 16.0, 40.0, 48.0]]], np.float32) - 0.5  # whole pixels of the low-resolution mask
    points = dataclasses.replace(make_prompts(b=1, p=1), boxes=None)
    every = points, dataclasses.replace(points, boxes=box)
    answers = (
        jax.jit(lambda p, e, *every, model=model: [model.decode(p, e, prompts) for prompts in every])(
            p, embedding, *every
        )
        for model, p in ((student, params), (plain, tiny_train[1]))
    )
    for prompts, (drawn, iou), (masks, expected) in zip(every, *answers, strict=True):
        np.testing.assert_allclose(iou, expected, atol=1e-5)
        masks = np.array(masks)
        if prompts.boxes is not None:
            outside = np.ones((16, 16), bool)
            outside[4:12, 2:10] = False
            masks[..., outside] -= 8
        np.testing.assert_allclose(drawn, masks, atol=1e-5)


@pytest.mark.slow(group="train")
def test_a_crf_starts_on_weights_without_one(tiny_train, tiny_crf, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"))
    config = tiny_crf[0].config
    monkeypatch.setitem(PRESETS, "crf", config)
    monkeypatch.setitem(MODELS, "crf", config)
    recipe = dataclasses.replace(get_recipe("smoke"), student="crf", init=str(path), image_size=64)
    student = make_student(recipe)
    params = initial_params(recipe, student, None)
    assert jax.tree.structure(params) == jax.tree.structure(student.abstract_params())
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    plain, prompts = Sam(get_config("tiny", 64), "train"), make_prompts(b=1, p=2, n=1)
    embedding, expected = jax.jit(student.encode)(params, images), jax.jit(plain.encode)(tiny_train[1], images)
    width = plain.config.embedding_channels
    np.testing.assert_allclose(embedding[..., :width], expected, atol=1e-5)
    assert embedding.shape[-1] == student.config.embedding_channels == width + 16 * 4
    masks, iou = jax.jit(student.decode)(params, embedding, prompts)
    rough, expected_iou = jax.jit(plain.decode)(tiny_train[1], expected, prompts)
    np.testing.assert_allclose(iou, expected_iou, atol=1e-5)
    refined = jax.jit(lambda rough, seen: crf.MeanField()(rough, None, crf.affinities(seen)))(
        rough, embedding[..., width:]
    )
    np.testing.assert_allclose(masks, refined, atol=1e-4)


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
    for step, status in ((39, 143), (40, None)):
        monkeypatch.setattr("train.loop.train", lambda *_, step=step, **__: SimpleNamespace(step=step))
        left = contextlib.nullcontext() if status is None else pytest.raises(SystemExit)
        with left as exit_:
            command.main()
        assert status is None or exit_.value.code == status

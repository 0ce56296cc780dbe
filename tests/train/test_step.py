"""A step of training: what it changes, and that it does not depend on devices, parts or what is computed again."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from repvit_sam_jax import Prompts, data
from repvit_sam_jax.config import get_config
from tests.helpers.micro import ENCODER, PROMPTS
from tests.helpers.processes import EIGHT_DEVICES, run_python
from tests.helpers.training import prepare, step_of, take, unlike
from train import state, step
from train.optim import decays, make_optimizer, make_schedule
from train.recipe import Losses, Optimizer
from train.teacher import load_teacher


@pytest.fixture(scope="module")
def prepared():
    return prepare(ENCODER)


def test_a_decoder_from_a_teacher_in_half_precision_is_not_rounded():
    recipe = dataclasses.replace(PROMPTS, dtype="bfloat16", decoder="teacher")
    exact = load_teacher(recipe.teacher, 64, "float32").params
    _, teacher, start = prepare(recipe)
    floats = [leaf.dtype for leaf in jax.tree.leaves(start) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    for part in ("prompt_encoder", "mask_decoder"):
        chex.assert_trees_all_equal(({**start.frozen, **start.trained})[part], exact[part])
    kernels = {str(leaf.dtype) for leaf in jax.tree.leaves(teacher.params["image_encoder"])}
    assert kernels == {"float32", "bfloat16"}  # what the teacher alone needs is half as large


@pytest.fixture(scope="module")
def double(photos):
    """A batch that is twice as large."""
    source = data.open_source((photos,))
    with_masks = data.ExampleConfig(64, PROMPTS.num_masks)
    with contextlib.closing(data.batches(source, with_masks, 16, seed=0)) as batches:
        return next(batches)


@pytest.fixture(scope="module")
def batch(double):
    return {name: values[:8] for name, values in double.items()}


@pytest.fixture(scope="module")
def stepped(prepared, batch):
    return take(ENCODER, prepared, batch)


def test_what_moves(prepared, stepped):
    """Statistics alone, for the first step has a learning rate of 0."""
    _, _, before = prepared
    after, metrics = stepped
    assert metrics["learning_rate"] == 0
    assert not unlike(before.trained, after.trained)
    moved = unlike(before.batch_stats, after.batch_stats)
    assert len(moved) == len(jax.tree.leaves(before.batch_stats))
    assert int(after.step) == 1
    assert metrics["loss"] == pytest.approx(metrics["mse"], rel=1e-6)


ONE_ROUND = dataclasses.replace(PROMPTS, prompting=dataclasses.replace(PROMPTS.prompting, rounds=1))
LOGITS = dataclasses.replace(
    PROMPTS,
    trained=("mask_decoder", "prompt_encoder"),
    losses=Losses(mse=0.0, dice=1.0),
    prompting=dataclasses.replace(PROMPTS.prompting, logits=True),
)


def test_prompts_in_the_loop_train_the_decoder(batch):
    """Encoder and decoder move, the prompt encoder does not; the decoder comes from the teacher."""
    prepared = prepare(ONE_ROUND)
    _, teacher, before = prepared
    assert not unlike(before.trained["mask_decoder"], teacher.params["mask_decoder"])
    after, metrics = take(ONE_ROUND, prepared, batch, steps=2)
    assert set(before.frozen) == {"prompt_encoder"}
    assert not unlike(before.frozen, after.frozen)
    for part in ("image_encoder", "mask_decoder"):
        assert len(unlike(before.trained[part], after.trained[part])) > 0.8 * len(jax.tree.leaves(before.trained[part]))
    assert set(metrics) >= {"mse", "bce", "dice", "iou", "grad_norm", "update_norm"}
    assert all(np.isfinite(value) for value in metrics.values())


def test_one_program_serves_all_seeds(batch):
    """Draws depend on the state's seed."""
    student, teacher, start = prepare(LOGITS)
    states = [
        state.create(dataclasses.replace(LOGITS, seed=seed), start.result, make_optimizer(LOGITS, 8)) for seed in (0, 7)
    ]
    run = step_of(LOGITS, student, teacher.model)
    losses = [float(run(now, teacher.params, batch)[1]["dice"]) for now in (*states, states[0])]
    assert losses[0] == losses[2] != losses[1]
    assert [int(now.seed) for now in states] == [0, 7]


def test_a_frozen_encoder_runs_fused(batch):
    """And what reads logits as a prompt learns, if they are passed on."""
    prepared = prepare(LOGITS)
    student, _, before = prepared
    assert student.form == "deploy"
    assert set(before.frozen) == {"image_encoder"}
    assert not before.batch_stats
    after, _ = take(LOGITS, prepared, batch, steps=2)
    assert not unlike(before.frozen, after.frozen)
    moved = {"/".join(name.split("/")[:2]) for name in unlike(before.trained, after.trained)}
    assert moved >= {"mask_decoder/transformer", "prompt_encoder/mask_downscaling", "prompt_encoder/point_embeddings"}


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("targets", ["teacher", "ground_truth"])
def test_what_is_asked_in_each_round(prepared, batch, rng, logits, targets):
    """By answers that do not depend on the prompts: a point more, and the mask before if it is to be passed on."""
    prompting = dataclasses.replace(PROMPTS.prompting, logits=logits, targets=targets)
    recipe = dataclasses.replace(PROMPTS, trained=("prompt_encoder", "mask_decoder"), prompting=prompting)
    ours, theirs = rng.normal(size=(2, 8, 4, 4, 16, 16)).astype(np.float32)
    ious = rng.random((2, 8, 4, 4)).astype(np.float32)
    asked = {"student": [], "teacher": []}

    def run(batch, ours, theirs):
        student = lambda prompts: (asked["student"].append(prompts), (ours, ious[0]))[1]
        teacher = lambda prompts: (asked["teacher"].append(prompts), (theirs, ious[1]))[1]
        chosen = teacher if targets == "teacher" else None
        metrics = step._prompted(recipe, prepared[0], student, chosen, batch, jax.random.key(0))
        return metrics, asked["student"], asked["teacher"]

    metrics, first_asked, teacher_asked = jax.jit(run)(batch, ours, theirs)
    assert set(metrics) == {"bce", "dice", "iou"}
    first, second = first_asked
    if targets == "teacher":
        chex.assert_trees_all_equal(teacher_asked, first_asked)
    assert first.masks is None
    chex.assert_trees_all_equal(second.point_coords[:, :, :2], first.point_coords)
    assert np.asarray(second.point_valid[:, :, 2])[batch["valid"]].mean() > 0.9
    if not logits:
        assert second.masks is None
        return
    ranking = ious[1 if targets == "teacher" else 0]
    best = np.where(step._is_ambiguous(first), 1 + ranking[..., 1:].argmax(-1), 0)
    assert len(np.unique(best[batch["valid"]])) > 2
    expected = np.take_along_axis(ours, best[..., None, None, None], 2)[:, :, 0]
    np.testing.assert_array_equal(second.masks, expected)


@pytest.mark.slow(group="train")
@pytest.mark.parametrize("remat", ["dots", "all"])
def test_computing_again_changes_nothing(prepared, stepped, batch, remat):
    _, metrics = take(dataclasses.replace(ENCODER, remat=remat), prepared, batch)
    np.testing.assert_allclose(metrics["grad_norm"], stepped[1]["grad_norm"], rtol=1e-5)
    assert metrics["loss"] == pytest.approx(stepped[1]["loss"], rel=1e-6)


@pytest.fixture(scope="module")
def averaged(prepared, double):
    """The state before and after a step on two parts of a batch, with a moving average; and its metrics.

    Everything is computed again for the gradients, which changes nothing.
    """
    optimizer = dataclasses.replace(ENCODER.optimizer, warmup=0.0, ema_decay=0.75)
    recipe = dataclasses.replace(ENCODER, micro_batches=2, remat="all", optimizer=optimizer)
    student, teacher, before = prepared
    before = state.create(recipe, before.result, make_optimizer(recipe, 8))
    return before, *take(recipe, (student, teacher, before), double)


def test_parts_of_a_batch(prepared, double, averaged):
    """Losses, gradients and statistics are means over the parts, and BatchNorm counts one step."""
    before, after, metrics = averaged
    halves = [take(ENCODER, prepared, {k: v[i::2] for k, v in double.items()}) for i in range(2)]
    assert metrics["loss"] == pytest.approx(np.mean([m["loss"] for _, m in halves]), rel=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.batch_stats):
        old, *parts = (_at(tree, path) for tree in (before.batch_stats, *(s.batch_stats for s, _ in halves)))
        if path[-1].key == "count":
            assert leaf == old + 1
        else:
            np.testing.assert_allclose(leaf, np.mean(parts, axis=0), rtol=1e-4, atol=1e-6)
    # Adam's first moments after one step are a tenth of the clipped gradient.
    gradients = [_moments(s) * max(float(m["grad_norm"]), 1) for s, m in halves]
    found = _moments(after) * max(float(metrics["grad_norm"]), 1)
    np.testing.assert_allclose(found, np.mean(gradients, axis=0), rtol=1e-3, atol=1e-4 * np.abs(found).max())


def _moments(state):
    """Adam's first moments as one vector."""
    (adam,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(adam.mu)])


def _is_adam(part):
    return isinstance(part, optax.ScaleByAdamState)


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_moving_average(averaged):
    before, after, _ = averaged
    counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(after.average[1]) if path[-1].key == "count"]
    assert counts
    assert set(map(int, counts)) == {1}
    # The first of a few steps: (1 + 0) / (10 + 0) of the start is kept.
    for old, new, found in zip(*map(jax.tree.leaves, (before.trained, after.trained, after.average[0])), strict=True):
        np.testing.assert_allclose(found, 0.1 * old + 0.9 * new, rtol=1e-6, atol=1e-8)
    assert unlike(after.result["image_encoder"], after.trained["image_encoder"])


def test_gradients_are_clipped_by_their_norm():
    """Of all together: moments of Adam's are those of a gradient of norm 1 at most."""
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    optimizer = make_optimizer(ENCODER, 8)
    for scale, kept in ((10.0, 0.1), (0.1, 1.0)):
        gradient = {"a": np.float32([0, 0.6 * scale]), "b": np.float32([0.8 * scale])}
        _, after = optimizer.update(gradient, optimizer.init(params), params)
        (adam,) = (part for part in jax.tree.leaves(after, is_leaf=_is_adam) if _is_adam(part))
        expected = jax.tree.map(lambda x, kept=kept: 0.1 * kept * x, gradient)
        chex.assert_trees_all_close(adam.mu, expected, rtol=1e-5)


def test_large_arrays_are_split_along_their_longest_axis(monkeypatch):
    """If the devices divide it."""
    monkeypatch.setattr(state, "SPLIT_FROM", 64)
    mesh = AbstractMesh((4, 2), state.AXES)
    shapes = {"long": (4, 6, 8), "odd": (9, 8), "small": (2, 31), "none": (9, 9), "count": ()}
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    found = {name: tuple(sharding.spec) for name, sharding in state.shardings(mesh, tree).items()}
    expected = {"long": (None, None, "fsdp"), "odd": (None, "fsdp"), "small": (), "none": (), "count": ()}
    assert found == expected
    alone = state.shardings(AbstractMesh((8, 1), state.AXES), tree)
    assert {tuple(sharding.spec) for sharding in alone.values()} == {()}


@pytest.mark.slow(group="train")
def test_sharded_equals_unsharded(batch, tmp_path):
    """Loss, gradient and state of two steps on eight devices, the params split over two or over all of them."""
    np.savez(tmp_path / "batch.npz", **batch)
    program = f"""
        import dataclasses, json, jax, numpy as np
        from jax.sharding import NamedSharding
        from tests.helpers.micro import PROMPTS, register
        from tests.helpers.training import prepare
        from train import state, step
        jax.config.update("jax_default_matmul_precision", "highest")
        register()
        state.SPLIT_FROM = 64
        batch = dict(np.load({str(tmp_path / "batch.npz")!r}))
        results = []
        for devices, fsdp in ((1, 1), (8, 1), (8, 2), (8, 8)):
            recipe = dataclasses.replace(PROMPTS, fsdp=fsdp)
            mesh = state.make_mesh(recipe, jax.devices()[:devices])
            student, teacher, start = prepare(recipe)
            now, params = state.place(mesh, start), state.place(mesh, teacher.params)
            split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(now.trained))
            run = jax.jit(step.make_step(recipe, student, teacher.model, 8))
            sharding = NamedSharding(mesh, state.BATCH)
            for _ in range(2):
                now, metrics = run(now, params, jax.device_put(batch, sharding))
            moments = [x for x in jax.tree.leaves(jax.device_get(now.opt_state)) if x.dtype == np.float32]
            grads = np.concatenate([np.ravel(x) for x in moments])
            stats = np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(now.batch_stats))])
            results.append((jax.device_get(metrics), grads, stats))
            print(json.dumps({{
                "split": split, "largest": float(abs(grads).max()),
                "metrics": max(abs(float(metrics[k] - v)) / (abs(float(v)) + 1e-6) for k, v in results[0][0].items()),
                "stats": float(abs(stats - results[0][2]).max()), "grads": float(abs(grads - results[0][1]).max()),
            }}))
    """
    found = [json.loads(line) for line in run_python(program, EIGHT_DEVICES)]
    assert [bool(one["split"]) for one in found] == [False, False, True, True]
    for one in found:
        assert one["metrics"] < 1e-4, found
        assert one["stats"] < 1e-5, found
        assert one["grads"] < 1e-3 * one["largest"], found  # Adam's moments; params are these divided by each other


@pytest.mark.parametrize("padding", [False, True])
def test_padding_counts_if_it_is_asked_for(padding):
    """A student that is right on the photo and wrong beside it, where half of the frame is padding."""
    config = get_config("micro")
    side, dim = config.embedding_size, config.mask_decoder.embed_dim
    wrong = np.zeros((1, side, side, dim), np.float32)
    wrong[:, :, side // 2 :] = 2
    student = SimpleNamespace(config=config, encode_train=lambda params, images, remat: (jnp.asarray(wrong), {}))
    recipe = dataclasses.replace(ENCODER, losses=Losses(mse=1.0, padding=padding))
    size, target = np.int32([[64, 32]]), np.zeros_like(wrong)
    batch = {"image": np.zeros((1, 64, 64, 3), np.uint8), "size": size, "embeddings": target}
    loss, _ = step._loss(recipe, student, None, {}, {}, {}, None, batch, jax.random.key(0))
    assert loss == (2 if padding else 0)


def test_masks_that_count():
    """The single mask for boxes and several points; for a point all masks, or the best of the multimask output."""
    labels = np.array([[[2, 3], [1, -1], [1, 0], [1, -1]]])
    valid = np.array([[[1, 1], [1, 0], [1, 1], [0, 0]]], bool)
    prompts = Prompts(np.zeros((1, 4, 2, 2), np.float32), labels, valid)
    ambiguous = step._is_ambiguous(prompts)
    np.testing.assert_array_equal(ambiguous, [[False, True, False, False]])
    cost = jnp.array([[[0.0, 3, 1, 2]] * 4])
    every = step._mask_weights(ambiguous, 4, None)
    np.testing.assert_array_equal(every[0], [[1, 0, 0, 0], [0.25] * 4, [1, 0, 0, 0], [1, 0, 0, 0]])
    best = step._mask_weights(ambiguous, 4, cost)
    np.testing.assert_array_equal(best[0, :2], [[1, 0, 0, 0], [0, 0, 1, 0]])


def test_predicted_ious_that_count():
    """Those of all masks that compete, not only of the one that learns."""
    ambiguous = np.array([[False, True]])
    several = step._iou_weights(ambiguous, 4, every=False)
    np.testing.assert_allclose(several[0], [[1, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(step._iou_weights(ambiguous, 4, every=True)[0], [[1, 0, 0, 0], [0.25] * 4])


def test_what_decays(prepared):
    """Kernels that some loss reaches."""
    _, _, start = prepared
    for path, decay in jax.tree_util.tree_leaves_with_path(decays(start.result, unused={"iou_head"})):
        names = [entry.key for entry in path]
        assert decay == (names[-1] == "kernel" and "iou_head" not in names)
    still = {"mask_decoder": jax.tree.map(np.ones_like, start.result["mask_decoder"])}
    zeros = jax.tree.map(np.zeros_like, still)
    for weight, worn in ((0.0, False), (1.0, True)):
        recipe = dataclasses.replace(PROMPTS, losses=dataclasses.replace(PROMPTS.losses, iou=weight))
        optimizer = make_optimizer(recipe, 8)
        state_, update = optimizer.init(still), jax.jit(optimizer.update)
        for _ in range(2):  # the first has a learning rate of 0
            updates, state_ = update(zeros, state_, still)
        assert np.any(updates["mask_decoder"]["hypernetworks"]["0"]["layers"]["0"]["kernel"])
        assert np.any(updates["mask_decoder"]["iou_head"]["layers"]["0"]["kernel"]) == worn


def test_muon_makes_kernels_orthogonal(prepared):
    """Against singular values: of kernels as matrices from inputs to outputs; all else moves as by AdamW."""
    _, _, start = prepared
    decoder = {name: start.result["mask_decoder"][name] for name in ("output_upscaling", "iou_head")}
    params = {"image_encoder": start.result["image_encoder"], "mask_decoder": decoder}
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    recipe = dataclasses.replace(PROMPTS, optimizer=Optimizer(1.0, 1.0, weight_decay=0.0, name="muon"))
    optimizers = make_optimizer(recipe, 8), optax.adamw(1.0, weight_decay=0.0, nesterov=True)
    updates, plain = (jax.jit(o.update)(grads, o.init(params), params)[0] for o in optimizers)
    kinds = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name, found, gradient = "/".join(k.key for k in path), np.asarray(update), _at(grads, path)
        if not name.endswith("kernel") or update.ndim % 2:  # depthwise ones are no matrices
            np.testing.assert_allclose(found, _at(plain, path), rtol=0.01, atol=1e-6, err_msg=name)
            continue
        kinds.add(update.ndim)
        inputs = len(found) if "output_upscaling" in name else found.size // found.shape[-1]
        found, gradient = found.reshape(inputs, -1), gradient.reshape(inputs, -1)
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        wanted = -0.2 * np.sqrt(max(gradient.shape)) * left @ right
        assert np.vdot(found, wanted) > 0.9 * np.linalg.norm(found) * np.linalg.norm(wanted), name
        assert 0.6 < np.linalg.norm(found) / np.linalg.norm(wanted) < 1.2, name
    assert kinds == {2, 4}


def test_learning_rate():
    schedule = make_schedule(Optimizer(1.0, 0.1, warmup=0.5), 10)
    np.testing.assert_allclose([schedule(i) for i in (0, 1, 5, 10)], [0, 0.2, 1, 0.1], atol=1e-6)
    assert make_schedule(Optimizer(1.0), 10)(0) == 1
    assert make_schedule(Optimizer(1.0, warmup=1.0), 1)(0) == 1

"""One step of training: the losses of a batch, their gradient, and the state after it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from repvit_sam_jax import Prompts, Sam, transforms
from repvit_sam_jax.evals.metrics import iou as iou_of
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.models.prompt_encoder import TOP_LEFT

from . import losses
from .optim import make_optimizer, make_schedule
from .prompts import add_point, first_round
from .recipe import Recipe
from .state import TrainState, join

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Step = Callable[[TrainState, Params | None, Batch], tuple[TrainState, Metrics]]


def make_step(recipe: Recipe, student: Sam, teacher: Sam | None, num_steps: int) -> Step:
    """The function (state, teacher's params, batch) -> (new state, metrics), to be jitted with the state donated.

    Batches are in `data`'s format, their masks included if the recipe has prompts in the loop, and hold
    `embeddings` [B, S/16, S/16, C] of the teacher where these come from a cache. The same state and batch give the same
    result: random draws depend on the state's seed and step.

    Metrics are scalars: `loss` and its parts, `learning_rate`, `grad_norm` (before clipping), `update_norm`, `skipped`.

    Raises:
      ValueError: a loss compares the embeddings of two models that have another number of channels each.
    """
    check_teacher(recipe, student, teacher)
    optimizer = make_optimizer(recipe, num_steps)
    schedule = make_schedule(recipe.optimizer, num_steps)
    loss = functools.partial(_loss, recipe, student, teacher)

    def step(state: TrainState, teacher_params: Params | None, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        gradient = jax.value_and_grad(
            lambda trained, batch, key: loss(trained, state.frozen, state.batch_stats, teacher_params, batch, key),
            has_aux=True,
        )
        (value, (metrics, batch_stats)), grads = _mean_over_parts(
            lambda part, key: gradient(state.trained, part, key), batch, key, recipe.micro_batches
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
            trained = optax.apply_updates(state.trained, updates)
        metrics |= {
            "loss": value,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "skipped": batch["skipped"].sum(),
        }
        average = state.average
        decay = recipe.optimizer.ema_decay
        if decay is not None:
            # As long as there are few steps, their mean: the start is forgotten soon.
            rate = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
            floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
            follow = lambda old, new: rate * old + (1 - rate) * new if floating(old) else new
            average = jax.tree.map(follow, average, (trained, batch_stats))
        new = TrainState(state.step + 1, state.seed, trained, state.frozen, batch_stats, opt_state, average)
        return new, metrics

    return step


def check_teacher(recipe: Recipe, student: Sam, teacher: Sam | None) -> None:
    """Raise ValueError if the recipe compares embeddings of another number of channels than the student's."""
    if teacher is None or not recipe.losses.embeddings:
        return
    theirs, own = (model.config.mask_decoder.embed_dim for model in (teacher, student))
    if theirs != own:
        raise ValueError(
            f"recipe {recipe.name}: embeddings of the teacher {teacher.config.name} have {theirs} channels, those of "
            f"the student {student.config.name} {own}: no loss compares them; learn from its masks, with "
            "losses.mse=0 losses.bce=1, or take another teacher"
        )


def _mean_over_parts(f: Callable[[Batch, PRNGKeyArray], Any], batch: Batch, key: PRNGKeyArray, count: int) -> Any:
    """The mean of `f` over `count` parts of the batch, one after the other; integers are those of the last part.

    Every device keeps its own images: part i holds each count-th image.
    """
    if count == 1:
        return f(batch, key)
    parts = {name: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}
    keys = jax.random.split(key, count)
    shapes = jax.eval_shape(f, {name: x[0] for name, x in parts.items()}, keys[0])
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        found = f(*part)
        return jax.tree.map(lambda a, x: a + x / count if floating(x) else x, total, found), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(add, zeros, (parts, keys))[0]


def _loss(
    recipe: Recipe,
    student: Sam,
    teacher: Any,
    trained: Params,
    frozen: Params,
    batch_stats: Params,
    teacher_params: Any,
    batch: Batch,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], tuple[Metrics, Params]]:
    """The weighted sum of the losses; and its parts, and the new running statistics."""
    images = transforms.normalize(batch["image"], batch["size"])
    params = join(trained, frozen, batch_stats)
    with jax.named_scope("student"):
        if recipe.encoder_learns:
            embeddings, batch_stats = student.encode_train(params, images, remat=recipe.remat)
        else:
            embeddings = student.encode(params, images)
    target: Any = None
    if recipe.needs_teacher:
        with jax.named_scope("teacher"):
            target = batch["embeddings"] if "embeddings" in batch else teacher.encode(teacher_params, images)
        target = lax.stop_gradient(target.astype(jnp.float32))
    metrics: Metrics = {}
    if recipe.losses.embeddings:
        side = student.config.embedding_size
        counted = None if recipe.losses.padding else transforms.valid_positions(batch["size"], side, images.shape[1])
        with jax.named_scope("losses"):
            metrics["mse"] = losses.embedding_mse(embeddings, target, counted)
    if recipe.losses.masks:
        answer = functools.partial(student.decode, params, embeddings, multimask_output=None)
        model = None
        if recipe.prompting.targets == "teacher":
            model = functools.partial(teacher.decode, teacher_params, target, multimask_output=None)
        metrics |= _prompted(recipe, student, answer, model, batch, key)
    total = sum(getattr(recipe.losses, name) * value for name, value in metrics.items())
    return total, (metrics, batch_stats)


def _prompted(
    recipe: Recipe,
    student: Sam,
    answer: Callable[[Prompts], tuple[Array, Array]],
    teacher: Callable[[Prompts], tuple[Array, Array]] | None,
    batch: Batch,
    key: PRNGKeyArray,
) -> Metrics:
    """Mask losses, means over the rounds of prompts."""
    config, side = student.config, student.config.low_res_size
    inside = transforms.valid_positions(batch["size"], side, config.image_size)
    keys = jax.random.split(key, recipe.prompting.rounds)
    with jax.named_scope("prompts"):
        prompts = first_round(
            keys[0],
            batch,
            box_probability=recipe.prompting.box_probability,
            box_noise=recipe.prompting.box_noise,
        )
    rounds: list[Metrics] = []
    for i in range(recipe.prompting.rounds):
        with jax.named_scope("decoder"):
            logits, iou = answer(prompts)
        if teacher is None:
            targets, ranking = batch["masks"][:, :, None], iou
        else:
            with jax.named_scope("teacher_decoder"):
                their_logits, ranking = lax.stop_gradient(teacher(prompts))
            targets = their_logits > config.mask_threshold
        ambiguous = _is_ambiguous(prompts)
        masks = (logits > config.mask_threshold) & inside[:, None, None]
        with jax.named_scope("losses"):
            bce = losses.mask_bce(logits, targets, inside)
            dice = losses.mask_dice(logits, targets, inside)
            cost = None if teacher is not None else recipe.losses.bce * bce + recipe.losses.dice * dice
            valid, count = batch["valid"][..., None], logits.shape[2]
            weights = dict.fromkeys(("bce", "dice"), valid * _mask_weights(ambiguous, count, cost))
            weights["iou"] = valid * _iou_weights(ambiguous, count, every=teacher is not None)
            hit = iou_of(masks, targets & inside[:, None, None])
            values = {"bce": bce, "dice": dice, "iou": jnp.square(iou - hit)}
            values = {name: value for name, value in values.items() if getattr(recipe.losses, name)}
            rounds.append({name: losses.weighted_mean(value, weights[name]) for name, value in values.items()})
        if i + 1 < recipe.prompting.rounds:
            best = jnp.where(ambiguous, 1 + jnp.argmax(ranking[..., 1:], axis=-1), 0)
            pick = lambda x, best: jnp.take_along_axis(x, best[..., None, None, None], axis=2)[:, :, 0]
            with jax.named_scope("prompts"):
                wanted = pick(targets, best if targets.shape[2] > 1 else jnp.zeros_like(best))
                prompts = add_point(keys[i + 1], prompts, pick(masks, best), wanted & inside[:, None])
                if recipe.prompting.logits:
                    prompts = dataclasses.replace(prompts, masks=lax.stop_gradient(pick(logits, best)))
    return {name: jnp.stack([found[name] for found in rounds]).mean() for name in rounds[0]}


def _is_ambiguous(prompts: Prompts) -> Bool[Array, "b p"]:
    """Whether a prompt is a single point, for which the decoder's several masks are meant."""
    valid = jnp.asarray(prompts.point_valid)
    box = (valid & (jnp.asarray(prompts.point_labels) >= TOP_LEFT)).any(-1)
    return (valid.sum(-1) == 1) & ~box


def _mask_weights(
    ambiguous: Bool[Array, "b p"], count: int, cost: Float[Array, "b p m"] | None
) -> Float[Array, "b p m"]:
    """What each of a prompt's `count` masks counts; together 1.

    The single mask alone, unless the prompt is ambiguous: then of the several masks the one with the least cost (arXiv
    2304.02643, appendix A), or without a cost every mask alike, each with a target of its own.
    """
    if cost is None:
        several = jnp.full(count, 1 / count)
    else:
        several = jax.nn.one_hot(1 + jnp.argmin(lax.stop_gradient(cost[..., 1:]), axis=-1), count)
    return jnp.where(ambiguous[..., None], several, jax.nn.one_hot(0, count))


def _iou_weights(ambiguous: Bool[Array, "b p"], count: int, *, every: bool) -> Float[Array, "b p m"]:
    """What the predicted IoU of each of a prompt's masks counts; together 1.

    Of an ambiguous prompt those of all its masks alike, or they could not be compared with each other later (SAM 2,
    arXiv 2408.00714, appendix, likewise): also the single mask's if `every` mask has a target of its own.
    """
    asked_for = jnp.arange(count) > (-1 if every else 0)
    return jnp.where(ambiguous[..., None], asked_for / asked_for.sum(), jax.nn.one_hot(0, count))

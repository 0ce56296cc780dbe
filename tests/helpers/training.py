"""Steps of the smallest models, outside of a run."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np

from tests.helpers.micro import ENCODER
from train import state, step
from train.optim import make_optimizer
from train.teacher import abstract_teacher, load_teacher


@functools.cache
def prepare(recipe):
    """Student, teacher and the state before the first step."""
    student = state.make_student(recipe)
    teacher = load_teacher(recipe.teacher, student.config.image_size, recipe.dtype)
    start = state.create(recipe, state.initial_params(recipe, student, teacher), make_optimizer(recipe, 8))
    # As `state.place` does: without weak types, for which the first step would be a program of its own.
    return student, teacher, jax.device_put(jax.device_get(start))


@functools.cache
def step_of(recipe, student, teacher):
    """The jitted step of a run of eight; it leaves the state that it is given as it is."""
    return jax.jit(step.make_step(recipe, student, teacher, 8))


def take(recipe, prepared, batch, steps=1):
    student, teacher, now = prepared
    run = step_of(recipe, student, teacher.model)
    for _ in range(steps):
        now, metrics = run(now, teacher.params, batch)
    return now, jax.device_get(metrics)


def unlike(a, b):
    """Names of the leaves that differ."""
    flat = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: bool((np.asarray(x) != y).any()), a, b))
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, differs in flat if differs}


def arguments_of(recipe):
    """Shapes of a step's arguments."""
    student = state.make_student(recipe)
    _, params = abstract_teacher("micro_vit", student.config.image_size, recipe.dtype)
    now = state.abstract_state(recipe, student, make_optimizer(recipe, 8))
    return now, params, state.abstract_batch(recipe, student)


def make_batch(rng, b=4, k=5) -> dict[str, np.ndarray]:
    masks = rng.random((b, k, 32, 32)) < 0.2
    masks[:, :, 30:], masks[..., 28:] = False, False
    valid = rng.random((b, k)) < 0.7
    valid[0, 0], valid[0, 1] = True, False
    corners = np.sort(rng.uniform(0, 112, (b, k, 2, 2)), axis=2).reshape(b, k, 4)
    return {
        "size": np.full((b, 2), (120, 112), np.int32),
        "masks": masks & valid[..., None, None],
        "boxes": (corners * valid[..., None]).astype(np.float32),
        "valid": valid,
    }


SAVED_ONCE = dataclasses.replace(ENCODER, checkpoint_every=100)
"""A recipe that differs from `ENCODER` in nothing that enters a step."""

PEAK, WORK = 1e10, 3e8
"""Operations a second of a made-up device, and of a made-up step."""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]

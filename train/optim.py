"""The optimizer of a recipe."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from .recipe import Optimizer, Recipe

UNUSED = {"head"}
"""Parts that no loss here ever reaches: MobileSAM's classification head."""


def make_schedule(optimizer: Optimizer, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0, then a cosine to the final one."""
    warmup = min(round(optimizer.warmup * num_steps), num_steps - 1)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else optimizer.learning_rate,
        optimizer.learning_rate,
        warmup,
        num_steps,
        optimizer.final_learning_rate,
    )


def make_optimizer(recipe: Recipe, num_steps: int) -> optax.GradientTransformation:
    """Clipping, then the recipe's optimizer under `make_schedule`."""
    optimizer = recipe.optimizer
    unused = UNUSED if recipe.losses.iou else UNUSED | {"iou_head"}
    if not (recipe.prompting.logits and recipe.prompting.rounds > 1):
        unused = unused | {"mask_downscaling"}
    schedule, mask = make_schedule(optimizer, num_steps), functools.partial(decays, unused=unused)
    if optimizer.name == "muon":
        chosen = muon(
            schedule,
            weight_decay=optimizer.weight_decay,
            weight_decay_mask=mask,
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    else:
        chosen = optax.adamw(schedule, b1=optimizer.b1, b2=optimizer.b2, weight_decay=optimizer.weight_decay, mask=mask)
    if optimizer.clip_norm is None:
        return chosen
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), chosen)


def _matrices(params: Any) -> Any:
    """How Muon reads each kernel as a matrix from inputs to outputs; None for what is left to AdamW."""

    def one(path: Any, x: Any) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] != "kernel" or x.ndim not in (2, 4):  # [3, 3, c] is depthwise
            return None
        inputs = 1 if "output_upscaling" in names else x.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, x.ndim)))

    return jax.tree_util.tree_map_with_path(one, params)


def decays(params: Any, unused: Collection[str] = ()) -> Any:
    """For each leaf, whether weights decay: kernels do; biases, scales, tokens and positions do not.

    Nor do kernels in a part called as one of `unused`: without a gradient, decay alone would wear them away.
    """

    def one(path: Any, _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and not set(names) & set(unused)

    return jax.tree_util.tree_map_with_path(one, params)

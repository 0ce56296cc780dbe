"""The optimizer of a recipe."""

from __future__ import annotations

from typing import Any

import jax
import optax

from .recipe import Optimizer


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


def make_optimizer(optimizer: Optimizer, num_steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW under `make_schedule`."""
    adamw = optax.adamw(
        make_schedule(optimizer, num_steps),
        b1=optimizer.b1,
        b2=optimizer.b2,
        weight_decay=optimizer.weight_decay,
        mask=decays,
    )
    if optimizer.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), adamw)


def decays(params: Any) -> Any:
    """For each leaf, whether weights decay: kernels do; biases, scales, tokens and positions do not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

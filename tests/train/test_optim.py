"""The optimizer outside of a step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from tests.helpers.micro import ENCODER
from train.optim import make_optimizer


@pytest.mark.parametrize("clip_norm", [0.5, None])
def test_gradients_are_clipped(clip_norm):
    """Adam's first moment shows it, a tenth of the gradient; its steps are of the same length either way."""
    recipe = dataclasses.replace(ENCODER, optimizer=dataclasses.replace(ENCODER.optimizer, clip_norm=clip_norm))
    optimizer = make_optimizer(recipe, 8)
    params = {"part": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)}}
    gradient = jax.tree.map(lambda leaf: np.full_like(leaf, 2.0), params)
    state = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)[1]
    (adam,) = optax.tree_utils.tree_get_all_with_path(state, "mu")
    expected = 8.0 if clip_norm is None else clip_norm
    assert optax.tree.norm(adam[1]) == pytest.approx((1 - recipe.optimizer.b1) * expected, rel=1e-5)

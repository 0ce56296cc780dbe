"""Small models, their params, and prompts for them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from repvit_sam_jax import PRESETS, Prompts, Sam
from repvit_sam_jax.config import CLASSIFIERS, MODELS, ClassifierConfig, SamConfig, TinyViTConfig, ViTConfig
from repvit_sam_jax.weights import reparam

_TINY = PRESETS["tiny"]
TINY_SEGMENTERS = (
    SamConfig(
        "tiny_vit_sam",
        ViTConfig(32, 4, 2, (1, 3), window_size=3, grid_size=8, mlp_dim=64),
        _TINY.mask_decoder,
        image_size=128,
    ),
    SamConfig(
        "tiny_mobile_sam",
        TinyViTConfig((8, 16, 24, 32), (2, 2, 3, 2), (1, 2, 3, 4), (3, 3, 5, 3), num_classes=10),
        _TINY.mask_decoder,
        image_size=128,
    ),
)
TINY_CLASSIFIERS = tuple(
    ClassifierConfig(
        name, dataclasses.replace(_TINY.image_encoder, last_stride=2), distilled, num_classes=10, image_size=64
    )
    for name, distilled in (("tiny_repvit", False), ("tiny_repvit_distill", True))
)
"""One of each family beside `tiny`, and the classifiers: `register` makes presets of them."""


def register() -> None:
    """Let `get_config` and its like find them."""
    for configs, table in ((TINY_SEGMENTERS, PRESETS), (TINY_CLASSIFIERS, CLASSIFIERS)):
        table.update({config.name: config for config in configs})
        MODELS.update(table)


encode = jax.jit(Sam.encode, static_argnums=0)
encode_with_intermediates = jax.jit(Sam.encode_with_intermediates, static_argnums=0)
encode_train = jax.jit(Sam.encode_train, static_argnums=0)
decode = jax.jit(Sam.decode, static_argnums=0, static_argnames="multimask_output")
decode_with_intermediates = jax.jit(Sam.decode_with_intermediates, static_argnums=0)
"""One function for all models and files: a shape is traced and compiled once in a process.

Where a test patches the model, it needs a function of its own: `jax.jit(lambda *args: model.decode(*args))`.
"""


def random_params(model: Sam, seed: int = 0) -> dict:
    """Params in which every leaf is random, running variances positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "count":
            return np.int32(rng.integers(1, 1000))
        if name == "var":
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        if name == "scale":
            return rng.uniform(0.4, 1.2, leaf.shape).astype(np.float32)
        if name == "kernel":
            fan_in = max(1, int(np.prod(leaf.shape[:-1])))
            return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract_params())


def tiny_with(**decoder: int) -> tuple[Sam, dict]:
    """Like `tiny`, with these fields of its decoder's config."""
    model = Sam(
        dataclasses.replace(PRESETS["tiny"], mask_decoder=dataclasses.replace(PRESETS["tiny"].mask_decoder, **decoder)),
        "train",
    )
    return Sam(model.config), reparam.fuse(random_params(model))


def make_prompts(seed=0, b=2, p=3, n=2, boxes=False, masks=False) -> Prompts:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 128, (b, p, 2, 2)), axis=2).reshape(b, p, 4)
    return Prompts(
        rng.uniform(0, 128, (b, p, n, 2)).astype(np.float32),
        rng.integers(0, 2, (b, p, n)).astype(np.int32),
        np.ones((b, p, n), bool),
        corners.astype(np.float32) if boxes else None,
        rng.normal(size=(b, p, 32, 32)).astype(np.float32) if masks else None,
    )

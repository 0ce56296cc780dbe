"""A table of the models: parameters, multiply-accumulates, and the time of one encoding."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from convert.synthetic import manifest, synthetic_image, synthetic_state_dict
from repvit_sam_jax import Sam, transforms
from repvit_sam_jax.config import Form, SamConfig, get_config
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights import reparam
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.hub import PUBLISHED, file_name

from . import rivals
from .harness import Candidate, interleave

SEGMENTERS = ("repvit_sam", "mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h")

encode = jax.jit(Sam.encode, static_argnums=0)
compact = jax.jit(Sam.compact, static_argnums=0)


def deploy_params(config: SamConfig, seed: int = 3) -> Params:
    """Synthetic weights of a model in deploy form, as JAX arrays."""
    form: Form = "train" if config.has_batch_norm else "deploy"
    params = mapping.to_params(synthetic_state_dict(manifest(config), seed), config, form)
    return jax.tree.map(jax.numpy.asarray, reparam.fuse(params) if form == "train" else params)


def encoders(config: SamConfig, params: Params, images: np.ndarray) -> list[Candidate]:
    """JAX's encoders; they are held against the eager twin."""
    given = jax.device_put(images)

    def ours(name: str, model: Sam, tolerance: float) -> Candidate:
        kept = compact(model, params)
        run = lambda: jax.block_until_ready(encode(model, kept, given))
        return Candidate(name, run, "torch_fp32", tolerance)

    return [ours("jax_fp32", Sam(config), 5e-5), ours("jax_bf16", Sam(config, dtype="bfloat16"), 5e-2)]


def table(presets: Sequence[str] = SEGMENTERS, image_size: int | None = None, rounds: int = 3) -> dict[str, Any]:
    """All models beside each other.

    Returns:
      a section of the report: a `table` with a row a model, and `by_model`, the times as of `interleave`.
    """
    rows, by_model = [], {}
    for preset in presets:
        config = get_config(preset, image_size)
        params = deploy_params(config)
        size = config.image_size
        images = transforms.preprocess(synthetic_image(size * 3 // 4, size), size)
        eager, *_ = rivals.encoders(Sam(config), params, images)
        times = by_model[config.name] = interleave([eager, *encoders(config, params, images)], rounds)
        count, in_encoder = (
            sum(leaf.size for leaf in jax.tree.leaves(part)) / 1e6 for part in (params, params["image_encoder"])
        )
        rows.append(
            {
                "model": f"`{config.name}`",
                "checkpoint": f"`{file_name(preset)}`" if config.name in PUBLISHED else "",
                "parameters (encoder)": f"{count:.1f} M ({in_encoder:.1f} M)",
                "encoder GMAC": f"{rivals.encoder_macs(config) / 1e9:.0f}",
                "JAX float32": f"{times['jax_fp32']['median']:.0f} ms",
                "JAX bfloat16": f"{times['jax_bf16']['median']:.0f} ms",
                "PyTorch float32": f"{times['torch_fp32']['median']:.0f} ms",
            }
        )
        del params, eager
        gc.collect()
    return {"table": rows, "by_model": by_model}

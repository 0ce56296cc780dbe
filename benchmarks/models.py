"""A table of the models: parameters, multiply-accumulates, and the time of one encoding."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from convert import mapping
from convert.download import PUBLISHED, file_name
from convert.synthetic import manifest, synthetic_image, synthetic_state_dict
from repvit_sam_jax import Sam, reparam, transforms
from repvit_sam_jax.config import Form, SamConfig, get_config
from repvit_sam_jax.model import Params

from . import rivals
from .harness import Candidate, interleave

SEGMENTERS = ("repvit_sam", "mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h")

encode = jax.jit(Sam.encode, static_argnums=0)


def deploy_params(config: SamConfig, seed: int = 3) -> Params:
    """Synthetic weights of a model in deploy form, as JAX arrays."""
    form: Form = "train" if config.has_batch_norm else "deploy"
    params = mapping.to_params(synthetic_state_dict(manifest(config), seed), config, form)
    return jax.tree.map(jax.numpy.asarray, reparam.fuse(params) if form == "train" else params)


def encoders(config: SamConfig, params: Params) -> list[Candidate]:
    """JAX's encoders, on a synthetic image; they are held against the eager twin."""
    size = config.image_size
    images = jax.device_put(transforms.preprocess(synthetic_image(size * 3 // 4, size), size))
    exact, half = Sam(config), Sam(config, dtype="bfloat16")
    return [
        Candidate("jax_fp32", lambda: np.asarray(encode(exact, params, images)), "torch_fp32"),
        Candidate("jax_bf16", lambda: np.asarray(encode(half, params, images)), "torch_fp32", tolerance=5e-2),
    ]


def table(presets: Sequence[str] = SEGMENTERS, image_size: int | None = None, rounds: int = 3) -> list[dict[str, Any]]:
    """A row a model: `preset`, `checkpoint`, `parameters` and `gmac` of the deploy form, and `milliseconds`."""
    rows = []
    for preset in presets:
        config = get_config(preset, image_size)
        params = deploy_params(config)
        size = config.image_size
        images = transforms.preprocess(synthetic_image(size * 3 // 4, size), size)
        eager, *_ = rivals.encoders(Sam(config), params, images)
        times = interleave([eager, *encoders(config, params)], rounds)
        rows.append(
            {
                "preset": config.name,
                "checkpoint": file_name(preset) if config.name in PUBLISHED else None,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "encoder_parameters": sum(leaf.size for leaf in jax.tree.leaves(params["image_encoder"])),
                "gmac": rivals.encoder_macs(config) / 1e9,
                "milliseconds": times,
            }
        )
        del params, eager
        gc.collect()
    return rows


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, with times in milliseconds."""
    lines = [
        "| model | checkpoint | parameters (encoder) | encoder GMAC | JAX float32 | JAX bfloat16 | PyTorch float32 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = (f"{row['milliseconds'][name]['median']:.0f} ms" for name in ("jax_fp32", "jax_bf16", "torch_fp32"))
        counts = f"{row['parameters'] / 1e6:.1f} M ({row['encoder_parameters'] / 1e6:.1f} M) | {row['gmac']:.0f}"
        name = f"`{row['checkpoint']}`" if row["checkpoint"] else ""
        lines.append(f"| `{row['preset']}` | {name} | {counts} | {' | '.join(times)} |")
    return "\n".join(lines)

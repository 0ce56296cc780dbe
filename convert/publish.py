"""Folders that other libraries load: transformers' `SamModel`, timm's RepViT; and a model card beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import repvit_sam_jax
from repvit_sam_jax.config import ClassifierConfig, Form, ModelConfig, SamConfig, ViTConfig
from repvit_sam_jax.files import new_folder, sha256
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.checkpoint import CheckpointError, Metadata
from repvit_sam_jax.weights.formats import mapping, timm, transformers
from repvit_sam_jax.weights.loading import find_weights, read_params

FILE = "model.safetensors"


def to_hf(source: Path, out: Path) -> str:
    """Write a folder for Hugging Face's hub, all or nothing.

    SAM's ViTs get the layout of transformers, which `SamModel.from_pretrained` loads. RepViT-SAM and MobileSAM, for
    which transformers has no model, get a file of this library, which `load("hf://OWNER/NAME")` reads.

    Args:
      source: a segmenter, as `read_params` takes it.
      out: a folder that is new or empty.

    Returns:
      The library that loads the folder.

    Raises:
      CheckpointError: the weights are damaged, or a classifier's.
      ValueError: `out` is not empty.
    """
    config, form, params = read_params(source)
    if not isinstance(config, SamConfig):
        raise CheckpointError(f"{source} holds the classifier {config.name}; `repvit-sam convert to-timm` takes it")
    is_vit = isinstance(config.image_encoder, ViTConfig)
    library = "transformers" if is_vit else "repvit_sam_jax"
    with new_folder(out) as folder:
        if is_vit:
            state = mapping.to_state(params, config, form)
            _save(folder, {str(transformers.from_official(key)): value for key, value in state.items()})
            _write_json(folder / "config.json", transformers_config(config))
        else:
            about = Metadata(config, form, _digest(source), f"repvit_sam_jax {repvit_sam_jax.__version__}")
            checkpoint.save(folder / FILE, params, about)
        (folder / "README.md").write_text(_card(config, form, params, source, library))
    return library


def to_timm(source: Path, out: Path) -> str:
    """Write a folder for timm's RepViT, all or nothing: `timm.create_model("local-dir:OUT")` loads it.

    Args:
      source: a classifier with two heads in training form, as `read_params` takes it.
      out: a folder that is new or empty.

    Returns:
      timm's name of the model.

    Raises:
      CheckpointError: the weights are damaged, a segmenter's, fused, or of a classifier that timm has not.
      ValueError: `out` is not empty.
    """
    config, form, params = read_params(source)
    if not isinstance(config, ClassifierConfig):
        raise CheckpointError(f"{source} holds the segmenter {config.name}; `repvit-sam convert to-hf` takes it")
    name = config.name.removesuffix("_distill")
    if form == "deploy" or not config.distilled or name == "repvit_m0_6":
        raise CheckpointError(
            f"{source} holds {config.name} in {form} form; timm has m0_9 to m2_3 with two heads, in training form"
        )
    with new_folder(out) as folder:
        _save(folder, timm.from_official(mapping.to_state(params, config, form), config))
        _write_json(folder / "config.json", {"architecture": name, "num_classes": config.num_classes})
        (folder / "README.md").write_text(_card(config, form, params, source, "timm"))
    return name


def transformers_config(config: SamConfig) -> dict[str, Any]:
    """`config.json` of a `SamModel`. The decoder's epsilon is that of the official code, not transformers' default."""
    encoder, decoder = config.image_encoder, config.mask_decoder
    assert isinstance(encoder, ViTConfig)
    patch = encoder.patch_size
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "hidden_size": encoder.embed_dim,
            "output_channels": decoder.embed_dim,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.num_heads,
            "mlp_dim": encoder.mlp_dim,
            "global_attn_indexes": list(encoder.global_attn_indexes),
            "window_size": encoder.window_size,
            "image_size": encoder.grid_size * patch,
            "patch_size": patch,
            "num_pos_feats": decoder.embed_dim // 2,
            "layer_norm_eps": 1e-6,
        },
        "prompt_encoder_config": {
            "hidden_size": decoder.embed_dim,
            "image_size": encoder.grid_size * patch,
            "patch_size": patch,
            "mask_input_channels": decoder.mask_in_channels,
        },
        "mask_decoder_config": {
            "hidden_size": decoder.embed_dim,
            "mlp_dim": decoder.mlp_dim,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.num_heads,
            "attention_downsample_rate": decoder.attention_downsample_rate,
            "iou_head_hidden_dim": decoder.iou_head_hidden_dim,
            "layer_norm_eps": 1e-5,
        },
    }


def _save(folder: Path, state: Mapping[str, np.ndarray]) -> None:
    save_file({key: np.asarray(value, order="C") for key, value in state.items()}, folder / FILE, {"format": "pt"})
    checkpoint.sort_header(folder / FILE)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _digest(source: Path) -> str:
    path = find_weights(source)
    return "" if path.is_dir() else sha256(path)


def _card(config: ModelConfig, form: Form, params: Params, source: Path, library: str) -> str:
    """A model card: what it is, what it was made of, how near it is to PyTorch, how it is loaded."""
    load = {
        "transformers": 'SamModel.from_pretrained("OWNER/NAME")',
        "timm": 'timm.create_model("hf-hub:OWNER/NAME", pretrained=True)',
        "repvit_sam_jax": 'repvit_sam_jax.load("hf://OWNER/NAME")',
    }[library]
    task = "image-classification" if isinstance(config, ClassifierConfig) else "mask-generation"
    arrays = {name: np.asarray(leaf) for name, leaf in checkpoint.flatten(params)}
    return f"""---
license: apache-2.0
library_name: {library}
pipeline_tag: {task}
---

# {config.name}

{config.name} in {form} form, converted by repvit_sam_jax {repvit_sam_jax.__version__}. Load it with `{load}`.

- Licence: that of the weights, which their publisher states; Apache-2.0 for RepViT, SAM and MobileSAM as published.
- Source: a file of SHA-256 `{_digest(source) or "unknown"}`.
- Arrays: SHA-256 `{checkpoint.digest(arrays)}`, as `repvit_sam_jax.weights.checkpoint.digest` computes it.
- {_parity(source)}
"""


def _parity(source: Path) -> str:
    """How near JAX is to PyTorch on these weights, in a line."""
    from .parity import parity

    report = parity(source)
    worst = max(row.relative for row in report.rows)
    flips = f", and {max(row.flipped for row in report.masks):.1e} of mask pixels flip" if report.masks else ""
    verdict = "within tolerance" if report.passed else "PAST TOLERANCE"
    return (
        f"Parity of JAX with PyTorch on a synthetic photo: largest relative RMS of {len(report.rows)} intermediates "
        f"{worst:.1e}{flips}, {verdict}."
    )

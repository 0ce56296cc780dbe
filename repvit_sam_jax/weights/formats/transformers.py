"""SAM in the layout of transformers' `SamModel` (huggingface/transformers, `modeling_sam.py`): names, not numbers.

transformers computes the decoder's four layer norms with an epsilon of 1e-6, official SAM and this library with 1e-5:
the same weights give logits that are 2e-5 to 7e-5 apart (relative RMS, measured on ViT-B).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import CheckpointError
from .renaming import Renaming, Rules, inverse


def _both(layout: str, official: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for theirs, ours in names.items():
        for leaf in ("weight", "bias"):
            yield f"{layout}.{theirs}.{leaf}", f"{official}.{ours}.{leaf}"


def _encoder() -> Iterator[tuple[str, str]]:
    layout, official = "vision_encoder", "image_encoder"
    yield f"{layout}.pos_embed", f"{official}.pos_embed"
    yield from _both(f"{layout}.patch_embed", f"{official}.patch_embed", {"projection": "proj"})
    neck = {"conv1": "0", "layer_norm1": "1", "conv2": "2", "layer_norm2": "3"}
    yield from _both(f"{layout}.neck", f"{official}.neck", neck)
    layout, official = f"{layout}.layers.{{i}}", f"{official}.blocks.{{i}}"
    names = {"layer_norm1": "norm1", "layer_norm2": "norm2"}
    names |= {name: name for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")}
    yield from _both(layout, official, names)
    for axis in "hw":
        yield f"{layout}.attn.rel_pos_{axis}", f"{official}.attn.rel_pos_{axis}"


def _prompt_encoder() -> Iterator[tuple[str, str]]:
    part = "prompt_encoder"
    yield POSITIONS, f"{part}.pe_layer.positional_encoding_gaussian_matrix"
    yield f"{part}.point_embed.{{i}}.weight", f"{part}.point_embeddings.{{i}}.weight"
    for name in ("not_a_point_embed", "no_mask_embed"):
        yield f"{part}.{name}.weight", f"{part}.{name}.weight"
    names = {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"}
    yield from _both(f"{part}.mask_embed", f"{part}.mask_downscaling", names)


def _mask_decoder() -> Iterator[tuple[str, str]]:
    part = "mask_decoder"
    for name in ("iou_token", "mask_tokens"):
        yield f"{part}.{name}.weight", f"{part}.{name}.weight"
    upscaling = {"upscale_conv1": "0", "upscale_layer_norm": "1", "upscale_conv2": "3"}
    yield from _both(part, f"{part}.output_upscaling", upscaling)
    mlp = {"proj_in": "layers.0", "layers.0": "layers.1", "proj_out": "layers.2"}
    for head in ("output_hypernetworks_mlps.{i}", "iou_prediction_head"):
        yield from _both(f"{part}.{head}", f"{part}.{head}", mlp)
    part = f"{part}.transformer"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    last = {f"final_attn_token_to_image.{name}": f"final_attn_token_to_image.{name}" for name in projections}
    yield from _both(part, part, {**last, "layer_norm_final_attn": "norm_final_attn"})
    attentions = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    names = {f"{attention}.{name}": f"{attention}.{name}" for attention in attentions for name in projections}
    names |= {f"layer_norm{i}": f"norm{i}" for i in range(1, 5)} | {f"mlp.lin{i}": f"mlp.lin{i}" for i in (1, 2)}
    yield from _both(f"{part}.layers.{{i}}", f"{part}.layers.{{i}}", names)


POSITIONS = "shared_image_embedding.positional_embedding"
SECOND_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
"""The same matrix, in files that `torch.save` wrote."""

RULES: Rules = (*_encoder(), *_prompt_encoder(), *_mask_decoder())
to_official = Renaming(RULES)
from_official = inverse(RULES)


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether these are the names of a `SamModel`, or of its image encoder."""
    return any(key.startswith("vision_encoder.layers.") for key in state)


def official(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict under official names.

    Raises:
      CheckpointError: its two matrices of the positional encoding differ.
    """
    state = dict(state)
    second = state.pop(SECOND_POSITIONS, None)
    if second is not None and not np.array_equal(state.setdefault(POSITIONS, second), second):
        raise CheckpointError(f"{POSITIONS} and {SECOND_POSITIONS} differ, and SAM has one matrix of both")
    return to_official.all_of(state)


WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def files(folder: Path) -> list[Path]:
    """The files of weights in a folder that `save_pretrained` wrote, of transformers or of timm; several if sharded.

    Raises:
      CheckpointError: there are none, one is missing, or `config.json` is that of another model.
    """
    about = folder / "config.json"
    if about.is_file():
        _check_kind(folder, _json(about))
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            found = [folder / shard for shard in _shards(index)]
            if missing := [path.name for path in found if not path.is_file()]:
                raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {index.name} lists")
            return found
    raise CheckpointError(f"{folder} is a folder without {' or '.join(WEIGHTS)}, so it is not a checkpoint")


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Hold `config.json` of transformers, or of timm, against the models of this library."""
    kind, architecture = config.get("model_type"), str(config.get("architecture"))
    if kind != "sam" and not (kind is None and "repvit" in architecture):
        named = f"of the type {kind!r}" if kind is not None else f"{architecture!r}"
        raise CheckpointError(
            f"{folder} holds a model {named}; this library has those of the type 'sam', and timm's RepViT"
        )


def _shards(index: Path) -> list[str]:
    shards = _json(index).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) and all(map(_is_name, shards.values())) else set()
    if not names:
        raise CheckpointError(f"{index} is damaged: its weight_map does not say which files the tensors are in")
    return sorted(names)


def _is_name(value: Any) -> bool:
    """Whether this is a file's name, without a folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\:\0")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return content
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error

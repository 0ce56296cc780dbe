"""PyTorch checkpoint -> safetensors of this library."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import repvit_sam_jax
from repvit_sam_jax.config import FORMS, Form, get_model_config
from repvit_sam_jax.files import sha256
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.checkpoint import CheckpointError, Metadata
from repvit_sam_jax.weights.reparam import ReparamError, fuse

from . import mapping

_WRAPPERS = ("model", "state_dict", "model_state_dict")


def check_target(target: Path) -> None:
    """Raises ValueError unless the name ends in .safetensors."""
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the target is a .safetensors file")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint, floats as float32.

    Looks through the wrappers that training scripts add: a `model` or `state_dict` entry, a `module.` prefix.
    Nothing but tensors and plain containers is ever unpickled.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is no PyTorch checkpoint, is truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        # Mapped, not read: ViT-H is 2.6 GB, and every tensor is copied into its own layout anyway.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # The first line is advice to load it all the same; what was refused comes later.
        refused = re.search(r"Unsupported (?:global: GLOBAL \S+|operand \S+)", str(error))
        reason = refused[0] if refused else str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} was refused: it is no PyTorch checkpoint, or it holds Python objects besides tensors, which "
            f"are never unpickled here ({reason}); save the state_dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # torch.load raises nearly anything on a file that is none of its own
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} is not a PyTorch checkpoint, or it is truncated ({reason})") from error
    return _to_numpy(_unwrap(loaded, path), path)


def _unwrap(loaded: Any, path: Path) -> Mapping[str, Any]:
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    if loaded and all(key.startswith("module.") for key in loaded):
        loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
    return loaded


def _to_numpy(state: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    foreign = [f"{key} ({type(value).__name__})" for key, value in state.items() if not torch.is_tensor(value)]
    if foreign:
        raise CheckpointError(f"{path} is not a state dict: it holds more than tensors: {', '.join(foreign)}")
    strange = [
        f"{key} ({value.layout})" for key, value in state.items() if value.layout != torch.strided or value.is_meta
    ]
    if strange:
        raise CheckpointError(f"{path} holds tensors that are not plain arrays: {', '.join(strange)}")
    return {
        key: (value.float() if value.is_floating_point() else value).detach().numpy() for key, value in state.items()
    }


def convert_state_dict(
    state: Mapping[str, np.ndarray],
    *,
    preset: str | None = None,
    form: Form | None = None,
    image_size: int | None = None,
) -> tuple[Params, Metadata]:
    """Params and metadata of a state dict; see `from_torch` for the arguments and errors."""
    config, found_form = mapping.identify(state, preset)
    params = mapping.to_params(state, config, found_form)
    if form is not None and not config.has_batch_norm:
        found_form = form
    if form == "train" and found_form == "deploy":
        raise CheckpointError("the checkpoint is fused: its BatchNorms can't be had back; use --form deploy")
    if form == "deploy" and found_form == "train":
        try:
            params, found_form = fuse(params), "deploy"
        except ReparamError as error:
            raise CheckpointError(f"it can't be fused: {error}") from error
    config = get_model_config(config.name, image_size)
    return params, Metadata(config, found_form, converter=f"repvit_sam_jax {repvit_sam_jax.__version__}")


def from_torch(
    source: Path,
    target: Path,
    *,
    preset: str | None = None,
    form: Form | None = None,
    image_size: int | None = None,
) -> Metadata:
    """Convert a PyTorch checkpoint file to a safetensors file, all or nothing.

    Args:
      source: a `.pt` or `.pth` file.
      target: the `.safetensors` file to write.
      preset: insist on this model; by default it is recognised from the keys.
      form: `train` keeps every branch and can be converted back bit for bit; `deploy` fuses. By default the source's.
      image_size: the input side in pixels that the file is to declare, if not the preset's.

    Returns:
      What was written about the file into its metadata.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: the file is no checkpoint, or not of a known model; all offending keys are listed.
      ValueError: an unknown form, a bad image size, or a target that does not end in .safetensors.
    """
    if form not in (None, *FORMS):
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    check_target(target)
    state = read_state_dict(source)
    try:
        params, metadata = convert_state_dict(state, preset=preset, form=form, image_size=image_size)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    metadata = Metadata(metadata.config, metadata.form, sha256(source), metadata.converter)
    checkpoint.save(target, params, metadata)
    return metadata

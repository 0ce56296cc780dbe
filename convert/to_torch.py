"""Safetensors of this library -> PyTorch checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from repvit_sam_jax import checkpoint
from repvit_sam_jax.checkpoint import CheckpointError
from repvit_sam_jax.config import Form
from repvit_sam_jax.reparam import fuse
from repvit_sam_jax.sam import Params, Sam

from . import mapping


def to_state_dict(params: Params, model: Sam) -> dict[str, torch.Tensor]:
    """The PyTorch state dict of params: the published names in training form, the fused twin's in deploy form.

    Raises:
      CheckpointError: the params are not those of the model; every problem is listed.
    """
    flat = dict(checkpoint.flatten(params))
    expected = dict(checkpoint.flatten(model.abstract_params()))
    checkpoint.check(flat, expected, f"params of {model.config.name} ({model.form} form)")
    state = mapping.to_state(params, model.config, model.form)
    return {key: torch.from_numpy(value.copy()) for key, value in state.items()}


def to_torch(source: Path, target: Path, *, form: Form | None = None) -> Form:
    """Convert a safetensors file to a PyTorch state-dict file, all or nothing.

    Args:
      source: a file that `from_torch` or `checkpoint.save` wrote.
      target: the `.pt` file to write.
      form: `deploy` fuses a training-form file first; by default the source's.

    Returns:
      The form that was written.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is damaged or foreign, or a deploy-form file can't give the training form.
    """
    arrays, metadata = checkpoint.read(source)
    params, found = checkpoint.unflatten(arrays), metadata.form
    if form == "train" and found == "deploy":
        raise CheckpointError(f"{source} is in deploy form: its BatchNorms are folded and can't be had back")
    if form == "deploy" and found == "train":
        params, found = fuse(params), "deploy"
    state = to_state_dict(params, Sam(metadata.config, found))
    checkpoint.write_atomically(target, lambda temporary: torch.save(state, temporary))
    return found

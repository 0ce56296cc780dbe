"""Safetensors of this library -> PyTorch checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from repvit_sam_jax.config import Form
from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.models.factory import model_of
from repvit_sam_jax.models.model import Model, Params
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.loading import read_params


def to_state_dict(params: Params, model: Model) -> dict[str, torch.Tensor]:
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
      source: a file that `from_torch` or `checkpoint.save` wrote, or `demo` for the package's own.
      target: the `.pt` file to write.
      form: `deploy` fuses a training-form file first; by default the source's.

    Returns:
      The form that was written.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is damaged or foreign, or a deploy-form file can't give the training form.
      ValueError: an unknown form, or a target that does not end in .pt or .pth.
    """
    if target.suffix not in (".pt", ".pth"):
        raise ValueError(f"{target}: the target is a .pt or .pth file")
    config, written, params = read_params(source, form)
    state = to_state_dict(params, model_of(config, written))
    write_atomically(target, lambda temporary: torch.save(state, temporary))
    return written

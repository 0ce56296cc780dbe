"""`load`: a checkpoint file to `(model, params)`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Literal

import jax

from . import checkpoint
from .checkpoint import CheckpointError
from .config import Form
from .reparam import fuse
from .sam import Params, Sam


def load(
    path: str | os.PathLike,
    *,
    form: Form = "deploy",
    dtype: Literal["float32", "bfloat16"] = "float32",
    image_size: int | None = None,
) -> tuple[Sam, Params]:
    """A model and its params from a file that `python -m convert from-torch` wrote.

    Args:
      path: a `.safetensors` file.
      form: `deploy` for inference; a training-form file is fused on the way. `train` for training and for BatchNorm.
      dtype: of the arithmetic. The params are float32 in either case.
      image_size: another side of the input square in pixels, a multiple of 16; the checkpoint's own if None.

    Returns:
      The static model and its params, a nested dict of JAX arrays on the default device.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: a PyTorch file, a damaged or foreign file, weights that do not fit the model that the
        file names (all of them are listed), or a deploy-form file where the training form was asked for.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        # In a checkout the converter lies beside the library, in an installed wheel inside it.
        home = "repvit_sam_jax.convert" if importlib.util.find_spec("repvit_sam_jax.convert") else "convert"
        command = f"python -m {home} from-torch {path} {path.with_suffix('.safetensors')}"
        raise CheckpointError(f"{path} is a PyTorch checkpoint; convert it once:\n  {command}")
    arrays, metadata = checkpoint.read(path)
    stored = Sam(metadata.config, metadata.form, dtype)
    checkpoint.check(arrays, dict(checkpoint.flatten(stored.abstract_params())), f"{path} ({metadata.config.name})")
    params = checkpoint.unflatten(arrays)
    if form != stored.form:
        if form == "train":
            raise CheckpointError(f"{path} is in deploy form: its BatchNorms are folded and can't be had back")
        params = fuse(params)
    config = metadata.config
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    return Sam(config, form, dtype), jax.tree.map(jax.numpy.asarray, params)

"""PyTorch checkpoint -> safetensors of this library."""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import repvit_sam_jax
from repvit_sam_jax.config import FORMS, Form
from repvit_sam_jax.files import sha256
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.checkpoint import CheckpointError, Metadata
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.formats.reading import read_official


def check_target(target: Path) -> None:
    """Raises ValueError unless the name ends in .safetensors."""
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the target is a .safetensors file")


def read_state_dict(path: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint: as `reading.read_official`, and through PyTorch its format of before 1.6 too.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is no checkpoint, is truncated, or holds anything but tensors.
    """
    is_old = path.is_file() and path.suffix.lower() != ".safetensors" and not zipfile.is_zipfile(path)
    if not is_old:
        return read_official(path, key)

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
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
    # One format, one reader: what torch read is written in the new one.
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / path.name
        torch.save(loaded, again)
        try:
            return {name: np.array(value) for name, value in read_official(again, key).items()}
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(again), str(path))) from error


def from_torch(
    source: Path,
    target: Path,
    *,
    preset: str | None = None,
    form: Form | None = None,
    image_size: int | None = None,
    key: str | None = None,
    ignore: Sequence[str] = (),
) -> Metadata:
    """Convert a PyTorch checkpoint file to a safetensors file, all or nothing.

    Args:
      source: what `reading.read_official` takes, or a PyTorch checkpoint in the format of before 1.6.
      target: the `.safetensors` file to write.
      preset: insist on this model; by default it is recognised from the keys.
      form: `train` keeps every branch and can be converted back bit for bit; `deploy` fuses. By default the source's.
      image_size: the input side in pixels that the file is to declare, if not the preset's.
      key: the entry that the state dict is under, if the file has several, such as `ema`.
      ignore: patterns of official keys to leave out; otherwise every key that the model has not is an error.

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
    state = read_state_dict(source, key)
    try:
        config, found, params = mapping.convert(state, preset=preset, form=form, image_size=image_size, ignore=ignore)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    digest = "" if source.is_dir() else sha256(source)
    metadata = Metadata(config, found, digest, f"repvit_sam_jax {repvit_sam_jax.__version__}")
    checkpoint.save(target, params, metadata)
    return metadata

"""Checkpoints of other programs, of every form that people hold: tensors under official names, as views of the file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from ..checkpoint import CheckpointError, check_file
from . import safetensors_file, state_dict, timm, transformers


def read_official(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, under the names of the official code, in the types that they are stored in.

    Args:
      path: a PyTorch checkpoint (`.pt`, `.pth`, `.bin`, `.ckpt`) in the zip format, read without PyTorch; a
        `.safetensors` file; or a folder that transformers' `save_pretrained` wrote. Names may be the official ones,
        those of transformers' `SamModel`, or those of timm's RepViT.
      key: the entry that the state dict is under, if the file has several, such as `ema`.

    Raises:
      FileNotFoundError: there is nothing at the path.
      CheckpointError: it is no checkpoint, damaged, in PyTorch's format of before 1.6, or holds anything but plain
        tensors.
    """
    path = Path(path)
    if not path.is_dir():
        check_file(path)
    state: dict[str, np.ndarray] = {}
    for file in transformers.files(path) if path.is_dir() else [path]:
        part = _read(file, key)
        if both := sorted(set(part) & set(state)):
            raise CheckpointError(f"{path}: {both[0]} is in two files")
        state |= part
    try:
        return _rename(state_dict.without_prefixes(state))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(file: Path, key: str | None) -> dict[str, np.ndarray]:
    if safetensors_file.is_one(file):
        if key is not None:
            raise CheckpointError(f"{file} has no state dict {key!r}: a safetensors file is one, and holds no others")
        return safetensors_file.read(file)
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file} is no checkpoint, or it is truncated: neither safetensors nor PyTorch's zip format (that of "
            "before PyTorch 1.6 is read by `repvit-sam convert from-torch`, with PyTorch installed)"
        )
    return state_dict.read_state_dict(file, key)


def _rename(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if transformers.recognises(state):
        return transformers.official(state)
    if timm.recognises(state):
        if problem := timm.problem(state):
            raise CheckpointError(problem)
        return timm.official(state)
    return state

"""safetensors files as views of the mapped file, where its own library would copy (huggingface/safetensors)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError

_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{f"I{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
}


def is_one(path: Path) -> bool:
    """Whether a file is called one, or begins as one does: with a length and a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix.lower() == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32)


def metadata(path: Path) -> dict[str, str]:
    """The strings that a file has about itself.

    Raises:
      CheckpointError: it is no safetensors file, or truncated.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # which checks that all tensors lie within the file
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file, or it is truncated: {error}") from error


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors by name, in the order of the file's header.

    Raises:
      CheckpointError: as `metadata`; or a tensor is of a type that no array has.
    """
    metadata(path)
    mapped = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(bytes(mapped[:8]), "little")
    header: dict[str, Any] = json.loads(bytes(mapped[8:start]))
    header.pop("__metadata__", None)
    arrays = {}
    for name, about in header.items():
        if about["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: {name} is of the type {about['dtype']}, which is no plain array's")
        first, last = about["data_offsets"]
        values = np.asarray(mapped[start + first : start + last]).view(_DTYPES[about["dtype"]])
        arrays[name] = values.reshape(about["shape"])
    return arrays

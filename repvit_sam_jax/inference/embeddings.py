"""Embeddings of photos in files, so that a photo is encoded once; each knows the image encoder that made it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from jaxtyping import Float

from ..config import SamConfig
from ..files import write_atomically
from ..models.model import Params
from ..weights.checkpoint import digest, flatten
from ..weights.reparam import fuse

FORMAT = "repvit_sam_jax/embedding/1"
SUFFIX = ".npz"


class Encoder(Protocol):
    """What embeddings are compared by; a `Backend` is one."""

    config: SamConfig

    @property
    def encoder_sha256(self) -> str:
        """As `encoder_sha256`, of the weights that it computes with."""


def encoder_sha256(params: Params) -> str:
    """Hex digest of the image encoder's arrays.

    It is the same for the training form and the deploy form that `fuse` makes of it, and for params that
    `Model.compact` has shrunk, since arrays are rounded to bfloat16 before. The decoder is not in it: an embedding
    serves every decoder that was trained on this encoder.

    Args:
      params: a segmenter's.
    """
    fused = fuse(params) if "batch_stats" in params else params
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(fused["image_encoder"])}
    return digest({name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()})


def write_embedding(
    path: str | os.PathLike, embedding: Float[np.ndarray, "1 h w c"], size: tuple[int, int], encoder: Encoder
) -> None:
    """Write the embedding of a photo of `size` (height, width), all or nothing.

    The file is NumPy's `.npz`: `embedding`, float32 [1, S/16, S/16, C], and `about`, JSON with `format`, `model`,
    `encoder_sha256`, `image_size` (S) and `original_size` [height, width].

    Raises:
      ValueError: the name has another suffix.
      OSError: the file can't be written.
    """
    path = Path(path)
    check_suffix(path)
    about = {**_expected(encoder), "model": encoder.config.name, "original_size": [int(side) for side in size]}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, embedding=np.asarray(embedding, np.float32), about=np.array(json.dumps(about)))

    write_atomically(path, write)


def read_embedding(path: str | os.PathLike, encoder: Encoder) -> tuple[Float[np.ndarray, "1 h w c"], tuple[int, int]]:
    """The embedding in a file, and the (height, width) of its photo.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no file of this form, it is damaged, or another encoder or image size made it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no embedding at {path}; --save-embedding or SamPredictor.save_embedding writes it")
    if not zipfile.is_zipfile(path):  # NumPy would advise to unpickle it
        raise ValueError(f"{path} is no embedding of this library, or it is damaged: it is no {SUFFIX} file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about, embedding = json.loads(str(arrays["about"])), arrays["embedding"]
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, not {FORMAT!r}")
        height, width = about["original_size"]
        # What other readings would let through: a size of fractions, an array that is cut short.
        if not all(isinstance(side, int) for side in (height, width)) or embedding.dtype != np.float32:
            raise ValueError("its size or its type is another")
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, RecursionError) as error:
        raise ValueError(f"{path} is no embedding of this library, or it is damaged: {error}") from error
    _compare(path, about, encoder)
    return embedding, (height, width)


def check_suffix(path: Path) -> None:
    """Raises ValueError for a name that is none of an embedding's."""
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"{path}: an embedding is kept in a file {SUFFIX}")


def _expected(encoder: Encoder) -> dict[str, Any]:
    sha256 = encoder.encoder_sha256
    return {"format": FORMAT, "encoder_sha256": sha256, "image_size": encoder.config.image_size}


def _compare(path: Path, about: Mapping[str, Any], encoder: Encoder) -> None:
    expected, again = _expected(encoder), "encode the photo again with --save-embedding"
    if about.get("image_size") != expected["image_size"]:
        raise ValueError(
            f"{path} was made at an image size of {about.get('image_size')}, and {encoder.config.name} has "
            f"{expected['image_size']}: {again}"
        )
    if about.get("encoder_sha256") != expected["encoder_sha256"]:
        raise ValueError(
            f"{path} was made by another image encoder than this {encoder.config.name}'s, by one of "
            f"{about.get('model')} (SHA-256 {str(about.get('encoder_sha256'))[:12]}, expected "
            f"{expected['encoder_sha256'][:12]}): {again}, or give the --weights that made it"
        )

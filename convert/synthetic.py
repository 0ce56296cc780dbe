"""Stand-in weights in the published format, for tests and demos without the published checkpoint.

Every tensor is drawn from a generator seeded by its own key, so its values depend on key, shape and seed alone.
BatchNorm statistics are far from (0, 1), so that a wrong fold shows. Masks from such weights mean nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from repvit_sam_jax.config import ModelConfig
from repvit_sam_jax.files import write_atomically
from repvit_sam_jax.weights.formats.mapping import state_dict_entries

PHOTO = (768, 1024)
"""(Height, width) in pixels at which masks are compared, whatever the input: fewer can't resolve a share of 1e-5."""


def synthetic_tensor(key: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """One tensor; float32 unless `dtype` is int64 (BatchNorm's counter, which gets a value of its own)."""
    code = zlib.crc32(key.encode())
    if dtype == "int64":
        return np.full(shape, 1 + code % 100_000, np.int64)
    rng = np.random.Generator(np.random.PCG64([seed, code]))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = rng.uniform(0.5, 2.0, shape)
    elif leaf == "running_mean":
        value = rng.normal(0.0, 0.3, shape)
    elif "gaussian_matrix" in leaf:
        value = rng.normal(0.0, 1.0, shape)
    elif leaf == "bias":
        value = rng.normal(0.0, 0.1, shape)
    elif leaf == "weight" and len(shape) == 1:  # scale of a norm
        value = rng.uniform(0.4, 1.2, shape)
    elif len(shape) == 4:  # convolution
        value = rng.normal(0.0, 1.0 / np.sqrt(shape[1] * shape[2] * shape[3]), shape)
    elif len(shape) == 2 and leaf == "weight":  # linear
        value = rng.normal(0.0, 1.0 / np.sqrt(shape[1]), shape)
    else:
        value = rng.normal(0.0, 0.2, shape)
    return value.astype(np.float32)


def synthetic_state_dict(manifest: Mapping[str, tuple[tuple[int, ...], str]], seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict for a manifest of key -> (shape, dtype)."""
    return {key: synthetic_tensor(key, tuple(shape), dtype, seed) for key, (shape, dtype) in manifest.items()}


def manifest(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> (shape, dtype) of the published (training-form) state dict of a model."""
    return {key: (entry.shape, str(entry.dtype)) for key, entry in state_dict_entries(config, "train").items()}


def write(path: Path, config: ModelConfig, seed: int = 0) -> None:
    """Write a PyTorch checkpoint of the published format with random weights.

    Raises:
      ValueError: the name does not end in .pt or .pth, or there is such a file, which may be the real one.
    """
    import torch

    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"{path}: the target is a .pt or .pth file")
    if path.exists():
        raise ValueError(f"{path} exists; random weights replace nothing, give another name")
    state = {key: torch.from_numpy(value) for key, value in synthetic_state_dict(manifest(config), seed).items()}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def synthetic_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: smooth blobs, edges and noise, so that every frequency is present."""
    rng = np.random.Generator(np.random.PCG64([seed, height, width]))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.zeros((height, width, 3))
    for _ in range(12):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        radius = rng.uniform(0.05, 0.3) * max(height, width)
        colour = rng.uniform(-1, 1, 3)
        squared = (y - cy) ** 2 + (x - cx) ** 2
        image += (squared < radius * radius)[..., None] * colour
        image += np.exp(-squared / (2 * radius * radius))[..., None] * rng.uniform(-1, 1, 3)
    image += rng.normal(0, 0.1, image.shape)
    low, high = image.min(), image.max()
    return ((image - low) / (high - low) * 255).round().astype(np.uint8)

"""Weights and a photo for commands."""

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import PRESETS
from repvit_sam_jax.weights import checkpoint


@pytest.fixture(scope="module")
def weights(tiny_train, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(path, tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"))
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Three photos, two of one stem."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (60, 80), "b.png": (50, 40), "a.bmp": (30, 40)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder

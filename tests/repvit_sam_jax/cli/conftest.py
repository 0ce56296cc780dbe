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

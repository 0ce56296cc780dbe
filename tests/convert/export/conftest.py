"""Weights of the tiny preset as files of either kind, and what the documents' examples are given."""

import dataclasses

import pytest
from PIL import Image

from convert.synthetic import manifest, synthetic_image, synthetic_state_dict
from repvit_sam_jax import PRESETS, SamPredictor, load
from repvit_sam_jax.config import RepViTConfig
from repvit_sam_jax.weights import checkpoint as checkpoints
from repvit_sam_jax.weights.formats import mapping

TINY = PRESETS["tiny"]
SHALLOW = dataclasses.replace(
    TINY,
    image_encoder=RepViTConfig((8, 16, 24), (1, 1, 1), last_stride=2),
    mask_decoder=dataclasses.replace(TINY.mask_decoder, depth=1),
)
"""A block a stage and a layer in the decoder: exporters take time for every operation, and most are there twice."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A PyTorch checkpoint in the published form, and the same as safetensors beside it."""
    from convert.from_torch import from_torch
    from convert.synthetic import write

    path = tmp_path_factory.mktemp("exports") / "tiny.pt"
    write(path, TINY, seed=3)
    from_torch(path, path.with_suffix(".safetensors"))
    return path


def save_shallow(path, seed):
    params = mapping.to_params(synthetic_state_dict(manifest(SHALLOW), seed), SHALLOW, "train")
    checkpoints.save(path, params, checkpoints.Metadata(SHALLOW, "train"))
    return path


@pytest.fixture(scope="session")
def shallow(tmp_path_factory):
    """Weights that most exports begin with."""
    return save_shallow(tmp_path_factory.mktemp("shallow") / "shallow.safetensors", 3)


@pytest.fixture
def other(tmp_path):
    """Other weights of the same model, the only file in its folder."""
    return save_shallow(tmp_path / "other.safetensors", 4)


@pytest.fixture(scope="session")
def predictor(shallow):
    return SamPredictor(*load(shallow))


@pytest.fixture
def photo(tmp_path):
    """An image, and the file of the examples that shows it."""
    image = synthetic_image(120, 160)
    Image.fromarray(image).save(tmp_path / "photo.png")
    return image

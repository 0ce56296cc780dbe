"""A photo, a predictor that has it set, and files."""

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import SamPredictor

HEIGHT, WIDTH = 60, 90
POINT = {"point_coords": [[20, 30]], "point_labels": [1]}


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def embedding(tiny, photo):
    predictor = SamPredictor(*tiny)
    predictor.set_image(photo)
    return predictor.get_image_embedding()


@pytest.fixture
def predictor(tiny, embedding):
    """With the photo set."""
    predictor = SamPredictor(*tiny)
    predictor.set_image_embedding(embedding, (HEIGHT, WIDTH))
    return predictor


def assert_usable(predictor):
    """The photo is still set, and it gives one prompt's masks without NaN."""
    masks, iou, low_res = predictor.predict(**POINT)
    assert masks.shape == (3, HEIGHT, WIDTH)
    assert np.isfinite(iou).all()
    assert np.isfinite(low_res).all()


def saved(folder, image, name, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(folder / name, **options)
    return folder / name

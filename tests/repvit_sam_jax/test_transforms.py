"""Resize, normalise, pad, and masks back to the photo's size, against PyTorch."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from repvit_sam_jax import transforms

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((600, 900), (683, 1024)),
        ((900, 600), (1024, 683)),
        ((1024, 1024), (1024, 1024)),
        ((1, 3), (341, 1024)),
        ((1, 1), (1024, 1024)),
        ((2048, 1), (1024, 1)),
        ((1024, 5), (1024, 5)),
        ((3, 2048), (2, 1024)),
    ],
)
def test_resized_shape_rounds_halves_up(size, expected):
    assert transforms.resized_shape(*size, 1024) == expected


def test_preprocess_resizes_with_pillow_normalises_then_pads(rng):
    image = rng.integers(0, 256, (70, 100, 3), dtype=np.uint8)
    found = transforms.preprocess(image, 64)
    resized = torch.from_numpy(np.array(Image.fromarray(image).resize((64, 45), Image.Resampling.BILINEAR))).float()
    normalised = (resized - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    assert found.shape == (1, 64, 64, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :45], normalised, atol=1e-6)
    assert not found[0, 45:].any()


def test_normalize_on_the_device_is_the_same(rng):
    """For padded images, with garbage in the padding, and for one without content."""
    sizes = np.array([(48, 64), (64, 21), (1, 1), (0, 0)])
    images = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    expected = [transforms.normalize_and_pad(image[:h, :w], 64) for image, (h, w) in zip(images, sizes, strict=True)]
    for normalize in (transforms.normalize, jax.jit(transforms.normalize)):
        found = normalize(images, sizes)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-6)
        assert not np.asarray(found)[~np.stack([e.any(-1) for e in expected])].any()


def test_preprocess_takes_images_of_any_sizes(rng):
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((30, 40), (64, 20))]
    found = transforms.preprocess(images, 64)
    assert found.shape == (2, 64, 64, 3)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(found[i], transforms.preprocess(image, 64)[0])
    with pytest.raises(ValueError, match="no images"):
        transforms.preprocess([], 64)


@pytest.mark.parametrize("size", [(13, 29), (48, 64), (150, 225), (64, 64), (1, 1), (5, 3)])
def test_postprocess_is_two_bilinear_resizes(rng, size):
    low_res = rng.normal(size=(3, 16, 16)).astype(np.float32)
    height, width = transforms.resized_shape(*size, 64)

    def resize(x, shape):
        return torch.nn.functional.interpolate(x, shape, mode="bilinear", align_corners=False)

    expected = resize(resize(torch.from_numpy(low_res)[None], (64, 64))[..., :height, :width], size)[0].numpy()
    found = transforms.postprocess_masks(low_res, size, 64)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    traced = jax.jit(lambda x: transforms.postprocess_masks(x, size, 64))(low_res)
    np.testing.assert_allclose(traced, expected, atol=2e-6)


def test_resize_bilinear_has_a_gradient():
    gradient = jax.grad(lambda x: transforms.resize_bilinear(x, 7, 9).sum())(np.ones((4, 4), np.float32))
    assert float(gradient.sum()) == pytest.approx(63, rel=1e-5)


def test_coordinates_and_boxes_scale_with_the_image():
    coords = transforms.apply_coords(np.array([[450.0, 300.0]]), (600, 900), 1024)
    np.testing.assert_allclose(coords, [[512.0, 341.5]])
    boxes = transforms.apply_boxes(np.array([[0, 0, 900, 600], [90, 60, 180, 120]]), (600, 900), 1024)
    np.testing.assert_allclose(boxes, [[0, 0, 1024, 683], [102.4, 68.3, 204.8, 136.6]], rtol=1e-6)


@pytest.mark.parametrize("grid_size", [8, 32])
def test_valid_positions_are_those_of_a_bilinear_shrink(grid_size):
    import torch

    sizes = np.array([(128, n) for n in range(1, 129)] + [(n, 128) for n in range(1, 129)] + [(40, 57), (9, 8)])
    content = torch.zeros(len(sizes), 1, 128, 128)
    for photo, (height, width) in zip(content, sizes, strict=True):
        photo[:, :height, :width] = 1
    shrunk = torch.nn.functional.interpolate(content, (grid_size, grid_size), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(transforms.valid_positions(sizes, grid_size, 128), shrunk[:, 0].numpy() > 0.5)

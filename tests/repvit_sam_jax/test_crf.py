"""The conditional random field against a slow plain version, and what it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from repvit_sam_jax import PRESETS, crf

SIDE = 16
WEIGHTS = {"unary": 0.7, "pairwise": 3.0, "slope": 0.4}


def mean_field(**weights) -> crf.MeanField:
    module = crf.MeanField()
    for name, value in weights.items():
        setattr(module, name, nnx.Param(jnp.float32(value)))
    return module


def packed(features: np.ndarray) -> np.ndarray:
    """[B, H, W, D] as the encoder gives it."""
    b, h, w, d = features.shape
    return features.reshape(b, h // 4, 4, w // 4, 4, d).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 4, w // 4, 16 * d)


def plain(masks, picture, features, *, unary, pairwise, slope):
    """Pixel by pixel."""
    fixed = unary * masks + picture
    x = fixed
    b, p, m, h, w = masks.shape
    for dilation in (2, 2, 1, 1):
        new = np.empty_like(x)
        for image, row, column in np.ndindex(b, h, w):
            total, drawn = 1e-3, np.zeros((p, m))
            for i, j in np.ndindex(3, 3):
                at = (row + dilation * (i - 1), column + dilation * (j - 1))
                if (i, j) == (1, 1) or not (0 <= at[0] < h and 0 <= at[1] < w):
                    continue
                near = np.exp(-np.sum((features[image, row, column] - features[(image, *at)]) ** 2))
                total += near
                drawn += near * np.tanh(slope * x[(image, slice(None), slice(None), *at)])
            new[image, :, :, row, column] = fixed[image, :, :, row, column] + pairwise * drawn / total
        x = new
    return x


@pytest.mark.parametrize("with_picture", [False, True])
def test_equals_the_plain_version(rng, with_picture):
    masks = 4 * rng.normal(size=(2, 2, 3, SIDE, SIDE))
    picture = 2 * rng.normal(size=masks.shape) if with_picture else np.zeros(masks.shape)
    features = 0.5 * rng.normal(size=(2, SIDE, SIDE, 5))
    expected = plain(masks, picture, features, **WEIGHTS)
    affinity = crf.affinities(jnp.float32(packed(features)))
    given = jnp.float32(picture) if with_picture else None
    found = jax.jit(mean_field(**WEIGHTS))(jnp.float32(masks), given, affinity)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pixel_features(rng):
    """Colours are means of 4 x 4 pixels, and a pixel's features lie where its mask's do."""
    images = rng.normal(size=(2, 4 * SIDE, 4 * SIDE, 3)).astype(np.float32)
    features = rng.normal(size=(2, SIDE, SIDE, 6)).astype(np.float32)
    module = crf.PixelFeatures(6, 5, rngs=nnx.Rngs(0))
    kernel, bias = (np.asarray(x[...]) for x in (module.linear.kernel, module.linear.bias))
    expected = np.empty((2, SIDE, SIDE, 5))
    for b, i, j in np.ndindex(2, SIDE, SIDE):
        colour = images[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1, 3).mean(0)
        expected[b, i, j] = np.concatenate([colour, features[b, i, j]]) @ kernel + bias
    np.testing.assert_allclose(module(images, features), packed(expected), atol=1e-4)


def test_masks_move_to_the_edge_of_a_colour():
    """A disc of another colour, and a mask that is moved and ragged; a disc of its colour, far away, stays out."""
    i, j = np.indices((64, 64))
    disc = (i - 24) ** 2 + (j - 24) ** 2 < 144
    elsewhere = (i - 50) ** 2 + (j - 50) ** 2 < 64
    features = np.where((disc | elsewhere)[..., None], [2.0, 0.0], [0.0, 1.0])[None]
    noise = np.random.default_rng(0).normal(size=(64, 64))
    rough = 3.0 * np.where((i - 25) ** 2 + (j - 23) ** 2 < 144, 1, -1) + 2 * noise
    found = crf.MeanField()(jnp.float32(rough)[None, None, None], None, crf.affinities(jnp.float32(packed(features))))
    iou = lambda mask: (mask & disc).sum() / (mask | disc).sum()
    assert iou(rough > 0) < 0.75
    assert iou(np.asarray(found)[0, 0, 0] > 0) > 0.95


def test_encoders_without_pixel_features_are_refused():
    config = PRESETS["tiny_mobile_sam"]
    decoder = dataclasses.replace(config.mask_decoder, crf_channels=4)
    with pytest.raises(ValueError, match="crf_channels need an encoder of the family repvit, got tiny_vit"):
        dataclasses.replace(config, mask_decoder=decoder)

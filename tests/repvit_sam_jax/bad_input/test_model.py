"""Arguments of the model, its params and its presets."""

import re

import numpy as np
import pytest

from repvit_sam_jax import Prompts, Sam
from repvit_sam_jax.weights import reparam


@pytest.mark.parametrize("shape", [(128, 128, 3), (1, 128, 128), (1, 3, 128, 128), (1, 64, 128, 3), (1, 128, 128, 4)])
def test_encode_with_images_of_another_shape(tiny, tiny_train, shape):
    message = re.escape(f"images must have shape [B, 128, 128, 3] for this model, got {shape}")
    with pytest.raises(ValueError, match=message):
        tiny[0].encode(tiny[1], np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=message):
        tiny_train[0].encode_train(tiny_train[1], np.zeros(shape, np.float32))


def test_pixels_that_are_not_normalised(tiny, tiny_train):
    pixels = np.zeros((1, 128, 128, 3), np.uint8)
    for encode in (lambda: tiny[0].encode(tiny[1], pixels), lambda: tiny_train[0].encode_train(tiny_train[1], pixels)):
        with pytest.raises(ValueError, match="images must be normalised floats, got uint8"):
            encode()


def test_encode_without_images(tiny):
    with pytest.raises(ValueError, match="no images were given"):
        tiny[0].encode(tiny[1], np.zeros((0, 128, 128, 3), np.float32))


def prompts(coords=(1, 2, 3, 2), labels=(1, 2, 3), valid=(1, 2, 3), boxes=None, masks=None):
    fields = [np.zeros(coords, np.float32), np.zeros(labels, np.int32), np.ones(valid, bool)]
    optional = [None if shape is None else np.zeros(shape, np.float32) for shape in (boxes, masks)]
    return Prompts(*fields, *optional)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"coords": (2, 3, 2)}, "point_coords must have shape [1, P, N, 2], got (2, 3, 2)"),
        ({"coords": (2, 2, 3, 2)}, "point_coords must have shape [1, P, N, 2], got (2, 2, 3, 2)"),
        ({"coords": (1, 2, 3, 3)}, "point_coords must have shape [1, P, N, 2], got (1, 2, 3, 3)"),
        (
            {"labels": (1, 2, 4)},
            "point_labels must have shape (1, 2, 3) beside point_coords (1, 2, 3, 2), got (1, 2, 4)",
        ),
        ({"valid": (1, 1, 3)}, "point_valid must have shape (1, 2, 3) beside point_coords (1, 2, 3, 2), got (1, 1, 3)"),
        ({"boxes": (1, 1, 4)}, "boxes must have shape (1, 2, 4) beside point_coords (1, 2, 3, 2), got (1, 1, 4)"),
        ({"coords": (1, 0, 3, 2)}, "no prompts were given: point_coords has shape (1, 0, 3, 2)"),
        ({"masks": (1, 2, 64, 64)}, "masks must have shape (1, 2, 32, 32) beside point_coords (1, 2, 3, 2), got"),
    ],
)
def test_decode_with_prompts_that_do_not_fit(tiny, embedding, shapes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny[0].decode(tiny[1], embedding, prompts(**shapes))


@pytest.mark.parametrize("shape", [(8, 8, 32), (1, 32, 8, 8), (1, 8, 8, 256), (2, 8, 9, 32)])
def test_decode_with_embeddings_of_another_shape(tiny, shape):
    message = re.escape(f"embeddings must have shape [B, 8, 8, 32] for this model, got {shape}")
    with pytest.raises(ValueError, match=message):
        tiny[0].decode(tiny[1], np.zeros(shape, np.float32), prompts())


def test_params_of_the_other_form(tiny, tiny_train):
    images = np.zeros((1, 128, 128, 3), np.float32)
    with pytest.raises(ValueError, match="these are training-form params; fuse them"):
        tiny[0].encode(tiny_train[1], images)
    with pytest.raises(ValueError, match=r'the training form needs params\["batch_stats"\]'):
        tiny_train[0].encode(tiny[1], images)
    with pytest.raises(ValueError, match="encode_train needs the training form"):
        tiny[0].encode_train(tiny[1], images)


def test_fuse_twice(tiny):
    with pytest.raises(reparam.ReparamError, match="no batch_stats: they are in deploy form already"):
        reparam.fuse(tiny[1])


@pytest.mark.parametrize("name", ["nano", "", "TINY", None])
def test_unknown_preset(name):
    with pytest.raises(ValueError, match=f"unknown preset {name!r}; known presets: repvit_sam, .*tiny"):
        Sam.from_preset(name)


@pytest.mark.parametrize("image_size", [0, -16, 8, 100, 1000, 128.0])
def test_bad_image_size(image_size):
    with pytest.raises(ValueError, match=f"image_size must be a positive multiple of 16, got {image_size}"):
        Sam.from_preset("tiny", image_size=image_size)


@pytest.mark.parametrize("dtype", ["float16", "f32", None, np.float32])
def test_unknown_dtype(dtype):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got"):
        Sam.from_preset("tiny", dtype=dtype)


@pytest.mark.parametrize("form", ["fused", "", None])
def test_unknown_form(form):
    with pytest.raises(ValueError, match=f"form must be one of train, deploy, got {form!r}"):
        Sam.from_preset("tiny", form=form)

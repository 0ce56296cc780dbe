"""What answers a `SamPredictor`: an encoder and a decoder, in JAX or in another runtime."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from .. import transforms
from ..config import Dtype, SamConfig
from ..models.model import Params
from ..models.prompt_encoder import Prompts
from ..models.sam import Sam
from .embeddings import encoder_sha256
from .prompts import bucket

# Module-level, so that all predictors of one model share their compiled programs.
_encode = jax.jit(Sam.encode, static_argnums=0)
_split = jax.jit(lambda embeddings: [embeddings[i : i + 1] for i in range(len(embeddings))])
_decode = jax.jit(Sam.decode, static_argnums=(0, 4))
_decode_above = jax.jit(Sam.decode, static_argnums=0)
_compact = jax.jit(Sam.compact, static_argnums=0)

ENCODE_BATCH = 4
"""Images that are encoded at once, at most."""
DECODE_BATCH = 64
"""Prompts that are decoded at once, at most."""


@functools.partial(jax.jit, static_argnums=0)
def encode_pixels(
    model: Sam, params: Params, images: UInt8[Array, "b s s 3"], sizes: Int[Array, "b 2"]
) -> Float[Array, "b s16 s16 c"]:
    """Embeddings of resized and padded photos; `sizes` are (height, width) of what is in them."""
    return model.encode(params, transforms.normalize(images, sizes))


class Backend(Protocol):
    """An encoder and a decoder. An embedding is whatever its own `decode` takes, [1, S/16, S/16, C]."""

    config: SamConfig
    dtype: Dtype

    @property
    def encoder_sha256(self) -> str:
        """Tells the image encoder from every other, see `embeddings.encoder_sha256`."""

    def encode(self, images: Float[np.ndarray, "b s s 3"]) -> list[Any]:
        """An embedding for each image, of which there are `ENCODE_BATCH` at most."""

    def decode(self, embedding: Any, prompts: Prompts, multimask_output: bool) -> tuple[Any, Any]:
        """Low-res masks [1, P, M, S/4, S/4] and predicted IoUs [1, P, M], where P may exceed that of `prompts`."""

    def decode_above(self, embedding: Any, prompts: Prompts, iou_threshold: np.float32) -> tuple[Any, Any]:
        """Three masks a prompt; those of prompts none of whose predicted IoUs exceeds the threshold may be anything."""

    def warmup(self, num_points: int, multimask_output: bool, num_images: int) -> None:
        """Compile what calls with so many points and images at once will need."""


class JaxBackend:
    """`Sam.encode` and `Sam.decode`, for few shapes: images and prompts are padded to powers of two."""

    def __init__(self, model: Sam, params: Params) -> None:
        self.model, self.config, self.dtype = model, model.config, model.dtype
        self.params = params if model.dtype == "float32" else _compact(model, params)

    @functools.cached_property
    def encoder_sha256(self) -> str:
        """As `Backend.encoder_sha256`; computed when it is first asked for."""
        return encoder_sha256(self.params)

    def encode(self, images: Float[np.ndarray, "b s s 3"]) -> list[Array]:
        """As `Backend.encode`."""
        padding = [(0, bucket(len(images)) - len(images))] + [(0, 0)] * 3
        return _split(_encode(self.model, self.params, np.pad(images, padding)))[: len(images)]

    def decode(
        self, embedding: Float[Array, "1 h w c"], prompts: Prompts, multimask_output: bool
    ) -> tuple[Float[Array, "1 p m h4 w4"], Float[Array, "1 p m"]]:
        """As `Backend.decode`."""
        return _decode(self.model, self.params, embedding, _padded(prompts), multimask_output)

    def decode_above(
        self, embedding: Float[Array, "1 h w c"], prompts: Prompts, iou_threshold: np.float32
    ) -> tuple[Float[Array, "1 p 3 h4 w4"], Float[Array, "1 p 3"]]:
        """As `Backend.decode_above`; prompts are not padded, since callers give as many each time."""
        return _decode_above(self.model, self.params, embedding, prompts, iou_threshold=iou_threshold)

    def warmup_above(self, prompts: Prompts, iou_threshold: np.float32) -> None:
        """Compile `decode_above` for prompts of this shape."""
        given = self.model, self.params, self.no_embedding(), prompts
        _decode_above.lower(*given, iou_threshold=iou_threshold).compile()

    def warmup(self, num_points: int, multimask_output: bool, num_images: int) -> None:
        """As `Backend.warmup`; nothing is computed."""
        self.warmup_encoder(num_images)
        shape = (1, 1, num_points)
        prompts = Prompts(np.zeros((*shape, 2), np.float32), np.zeros(shape, np.int32), np.zeros(shape, bool))
        _decode.lower(self.model, self.params, self.no_embedding(), _padded(prompts), multimask_output).compile()

    def warmup_encoder(self, num_images: int) -> None:
        """Compile the encoder for so many images."""
        side = self.config.image_size
        for count in {bucket(min(num_images - start, ENCODE_BATCH)) for start in range(0, num_images, ENCODE_BATCH)}:
            images = np.zeros((count, side, side, 3), np.float32)
            encode = _encode.lower(self.model, self.params, images)
            encode.compile()
            _split.lower(encode.out_info).compile()

    def no_embedding(self) -> Float[np.ndarray, "1 h w c"]:
        """Zeros in the shape of an embedding."""
        side = self.config.embedding_size
        return np.zeros((1, side, side, self.config.mask_decoder.embed_dim), np.float32)


def _padded(prompts: Prompts) -> Prompts:
    """As many prompts, and points of each, as the next powers of two; what is added changes nothing."""
    count, points = prompts.point_labels.shape[1:]
    more = ((0, 0), (0, bucket(count) - count), (0, bucket(points, minimum=2) - points))
    masks = prompts.masks
    return Prompts(
        np.pad(prompts.point_coords, (*more, (0, 0))),
        np.pad(prompts.point_labels, more),
        np.pad(prompts.point_valid, more),
        masks=None if masks is None else np.pad(masks, (*more[:2], (0, 0), (0, 0))),
    )

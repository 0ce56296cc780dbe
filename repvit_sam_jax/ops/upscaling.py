"""Image tokens to mask logits: two transposed convolutions, and products with weights made of prompt tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .activations import gelu


class PatchExpansion(NamedTuple):
    """A 2x2 transposed convolution of stride 2: each input pixel makes outputs of its own. Kernel in compute dtype."""

    kernel: Float[Array, "cin 2 2 cout"]
    bias: Float[Array, "cout"]


class Norm(NamedTuple):
    """A LayerNorm over channels."""

    scale: Float[Array, "c"]
    bias: Float[Array, "c"]
    epsilon: float


def masks_of(
    image: Float[Array, "b p n c"],
    weights: Float[Array, "b p m c8"],
    conv1: PatchExpansion,
    norm: Norm,
    conv2: PatchExpansion,
) -> Float[Array, "b p m h4 w4"]:
    """`weights @ gelu(conv2(gelu(norm(conv1(image)))))`, at four times the resolution, float32.

    Outputs stay grouped by input pixel, so that products over channels are matrix products and the finished logits, one
    channel of 32, are all that is put in order. Elsewhere than on CPU the 16 pixels of a token lie side by side among
    the channels: arrays of 32 and 64 channels waste most of a TPU's 128 lanes. 43.9 to 23.9 million cycles of a v5e by
    its compiler's estimate, for 64 points.
    """
    given = image, weights, conv1, norm, conv2
    return lax.platform_dependent(*given, cpu=plain, default=packed)


def plain(image: Array, weights: Array, conv1: PatchExpansion, norm: Norm, conv2: PatchExpansion) -> Array:
    """Pixels on an axis of their own."""
    b, p, n, dim = image.shape
    x = _expand(image.reshape(-1, dim), conv1).astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    x *= lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + norm.epsilon) * norm.scale
    x = (x + norm.bias).astype(conv2.kernel.dtype)
    pixels = gelu(_expand(gelu(x), conv2)).reshape(b, p, 16 * n, -1)
    return _in_order(jnp.matmul(pixels, weights.mT, preferred_element_type=jnp.float32), b, p, n)


def packed(image: Array, weights: Array, conv1: PatchExpansion, norm: Norm, conv2: PatchExpansion) -> Array:
    """The 16 pixels of a token among the channels, by block-diagonal kernels: multiplying by zeros costs less."""
    b, p, n, dim = image.shape
    width = conv1.kernel.shape[-1]
    y = _expand_packed(image.reshape(-1, dim), conv1, 1).astype(jnp.float32)
    means = _block_diagonal(jnp.full((width, width), 1 / width, jnp.float32), 4)
    mean = lambda x: jnp.matmul(x, means, precision=(lax.Precision.HIGHEST, lax.Precision.DEFAULT))
    y -= mean(y)
    y *= lax.rsqrt(mean(jnp.square(y)) + norm.epsilon)
    y = (y * jnp.tile(norm.scale, 4) + jnp.tile(norm.bias, 4)).astype(conv2.kernel.dtype)
    pixels = gelu(_expand_packed(gelu(y), conv2, 4)).reshape(b, p, n, -1)
    masks = jnp.matmul(pixels, _block_diagonal(weights.mT, 16), preferred_element_type=jnp.float32)
    return _in_order(masks, b, p, n)


def _expand(x: Float[Array, "n cin"], conv: PatchExpansion) -> Float[Array, "n4 cout"]:
    kernel, bias = conv
    y = jnp.matmul(x.astype(kernel.dtype), kernel.reshape(len(kernel), -1), preferred_element_type=jnp.float32)
    return (y.reshape(-1, kernel.shape[-1]) + bias).astype(kernel.dtype)


def _expand_packed(x: Float[Array, "n groups*cin"], conv: PatchExpansion, groups: int) -> Float[Array, "n m"]:
    """`_expand` of `groups` pixels side by side among the channels, whose outputs stay there."""
    kernel = conv.kernel.reshape(x.shape[-1] // groups, -1)
    y = jnp.matmul(x.astype(kernel.dtype), _block_diagonal(kernel, groups), preferred_element_type=jnp.float32)
    return (y + jnp.tile(conv.bias, 4 * groups)).astype(kernel.dtype)


def _in_order(masks: Array, b: int, p: int, n: int) -> Float[Array, "b p m h4 w4"]:
    """From pixels grouped by image token, and within by those of the first convolution."""
    side = math.isqrt(n)
    masks = masks.reshape(b, p, side, side, 2, 2, 2, 2, -1).transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)
    return masks.reshape(b, p, -1, 4 * side, 4 * side)


def _block_diagonal(block: Float[Array, "*batch m n"], count: int) -> Float[Array, "*batch count*m count*n"]:
    m, n = block.shape[-2:]
    wide = block[..., None, :, None, :] * jnp.eye(count, dtype=block.dtype)[:, None, :, None]
    return wide.reshape(*block.shape[:-2], count * m, count * n)

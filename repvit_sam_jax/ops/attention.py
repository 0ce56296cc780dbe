"""Attention between a handful of prompt tokens and thousands of image tokens, in the cheaper order of its products.

Arrays carry [B, P] in front: images, and prompts of an image. The image side may have P = 1 while its content is the
same for all prompts. Products are (X W) q where many prompts share X W, otherwise X (W q): with T tokens a prompt and h
heads, h T vectors then take the place of the inner width. With the prompts in chunks (`ops.chunks`) the decoder takes
0.66 of the time for one box and 0.45 for 16, in float32 on two CPU cores (docs/performance.md).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .convolutions import product

Tokens = Float[Array, "b p h t d"]
"""Queries, keys or values of prompt tokens, by head."""
ImageTokens = Float[Array, "b p n c"]

matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


class Weights(NamedTuple):
    """A linear layer: its kernel in the compute dtype, and its bias."""

    kernel: Float[Array, "din dout"]
    bias: Float[Array, "dout"]


class Shared(NamedTuple):
    """Projections of what all prompts share: of the positions alone (`values` is None), or of whole image tokens."""

    keys: Float[Array, "b p h d n"]
    queries: Float[Array, "b p h d n"] | None = None
    values: Float[Array, "b p h n d"] | None = None


def split_heads(x: Float[Array, "*batch n inner"], num_heads: int) -> Float[Array, "*batch h n d"]:
    """Heads in front of the tokens."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(-2, -3)


def join_heads(x: Float[Array, "*batch h n d"], dtype: jnp.dtype) -> Float[Array, "*batch n inner"]:
    """The inverse of `split_heads`."""
    x = x.astype(dtype).swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def left_over(image: ImageTokens, image_pe: ImageTokens, shared: Shared | None) -> ImageTokens | None:
    """Image tokens with their positions, less what `shared` holds already; None if that is all."""
    if shared is None:
        return image + image_pe
    return image if shared.values is None else None


def scores(
    tokens: Tokens, weights: Weights, image: ImageTokens | None, shared: Float[Array, "b p h d n"] | None = None
) -> Float[Array, "b p h t n"]:
    """`tokens @ linear(image).mT / sqrt(d)`, head by head.

    Args:
      tokens: by head.
      weights: of the linear layer.
      image: image tokens, or what of them is not in `shared`; None if nothing is left.
      shared: the layer's result for the part of the image tokens that is the same for all prompts.
    """
    h, t, d = tokens.shape[2:]
    tokens = tokens / math.sqrt(d)
    if image is None:
        assert shared is not None
        return matmul(tokens, shared)
    kernel, bias = weights.kernel, weights.bias.reshape(h, -1, 1)
    dtype = kernel.dtype
    shared = bias.astype(dtype) if shared is None else shared
    if not tokens_first(h, t, kernel.shape[-1]):
        return matmul(tokens, (split_heads(matmul(image, kernel), h).mT + shared).astype(dtype))
    b, p = tokens.shape[:2]
    folded = matmul(tokens, split_heads(kernel, h).mT).astype(dtype).reshape(b, p, h * t, -1)
    # Image tokens on the left: in the other order they would be transposed in memory, 4 MB a prompt.
    return matmul(image, folded.mT).mT.reshape(b, p, h, t, -1) + matmul(tokens, shared)


def mixtures(
    attention: Float[Array, "b p h t n"], weights: Weights, image: ImageTokens, shared: Array | None = None
) -> Float[Array, "b p h t d"]:
    """`attention @ linear(image)`, head by head; `shared` is `linear(image)` by head, if all prompts share it."""
    if shared is not None:
        return matmul(attention, shared)
    b, p, h, t, n = attention.shape
    kernel, bias = weights
    if not tokens_first(h, t, kernel.shape[-1]):
        return matmul(attention, split_heads((product(image, kernel) + bias).astype(kernel.dtype), h))
    mixed = matmul(attention.reshape(b, p, h * t, n), image).astype(kernel.dtype)
    return matmul(mixed.reshape(b, p, h, t, -1), split_heads(kernel, h)) + bias.reshape(h, 1, -1)


def updates(attention: Float[Array, "b p h t n"], values: Tokens, weights: Weights) -> ImageTokens:
    """`linear(attention.mT @ values)`, heads joined: what image tokens take from prompt tokens."""
    b, p, h, t, n = attention.shape
    kernel, bias = weights
    if not tokens_first(h, t, len(kernel)):
        joined = join_heads(matmul(attention.mT, values), kernel.dtype)
        return (product(joined, kernel) + bias).astype(kernel.dtype)
    folded = matmul(values, kernel.reshape(h, -1, kernel.shape[-1])).astype(kernel.dtype).reshape(b, p, h * t, -1)
    return (matmul(attention.reshape(b, p, h * t, n).mT, folded) + bias).astype(kernel.dtype)


def tokens_first(num_heads: int, num_tokens: int, inner: int) -> bool:
    """Whether so few tokens are cheaper to multiply by the weights than image tokens are."""
    return num_heads * num_tokens < inner

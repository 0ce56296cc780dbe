"""Two 3x3 convolutions of stride 2, from an image of three channels."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .activations import gelu
from .convolutions import conv3x3

ROWS = 16
"""Rows of the result that are made at a time on CPU, at most; 8 to 64 take the same time."""


def stem(
    x: Float[Array, "b h w 3"],
    kernel1: Float[Array, "3 3 3 c2"],
    kernel2: Float[Array, "3 3 c2 c"],
    bias1: Float[Array, "c2"],
    bias2: Float[Array, "c"],
) -> Float[Array, "b h4 w4 c"]:
    """`conv3x3(gelu(conv3x3(x, kernel1, 2) + bias1), kernel2, 2) + bias2`, in the kernels' dtype.

    On CPU in strips (61 to 39 ms at 1024 x 1024, temporary memory 42 to 17 MB), elsewhere in blocks (32 to 7.4 million
    cycles of a TPU v5e, by its compiler's estimate, for 8 images); docs/performance.md has more.
    """
    given = kernel1, kernel2, bias1, bias2
    return lax.platform_dependent(x, *given, cpu=functools.partial(_in_strips, dtype=kernel1.dtype), default=_in_blocks)


def _in_blocks(x: Array, kernel1: Array, kernel2: Array, bias1: Array, bias2: Array) -> Array:
    """Pixels of a block of 4x4 side by side among the channels, and the results of the first convolution likewise.

    Arrays of 3 and 40 channels waste most of a TPU's 128 lanes.
    """
    # Slices and not a transposition, for which a TPU would rearrange all pixels three times.
    x = jnp.concatenate([x[:, i::4, j::4] for i in range(4) for j in range(4)], axis=-1)
    return _of_blocks(gelu(_of_blocks(x, kernel1, bias1, 2)), kernel2, bias2, 1)


def _of_blocks(x: Array, kernel: Array, bias: Array, size: int) -> Array:
    """A convolution from blocks of 2 `size` pixels a side to blocks of `size`."""
    wide = block_kernel(kernel, size)
    y = lax.conv_general_dilated(x, wide, (1, 1), ((1, 0), (1, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (y.astype(jnp.float32) + jnp.tile(bias, size**2)).astype(kernel.dtype)


def block_kernel(kernel: Float[Array, "3 3 cin cout"], size: int) -> Float[Array, "2 2 cin2 cout2"]:
    """A 3x3 kernel of stride 2 and padding 1, from blocks of 2 `size` pixels a side to blocks of `size`.

    A block of results sees the block of pixels at the same place and those above and to the left of it.
    """
    places = [(2 * size - 1 + 2 * i, 2 * size - 2 - 2 * i) for i in range(size)]
    wide = jnp.stack([jnp.stack([jnp.pad(kernel, (i, j, (0, 0), (0, 0))) for j in places]) for i in places])
    cin, cout = kernel.shape[2:]
    split = wide.reshape(size, size, 2, 2 * size, 2, 2 * size, cin, cout)
    return split.transpose(2, 4, 3, 5, 6, 0, 1, 7).reshape(2, 2, 4 * size**2 * cin, size**2 * cout)


def _in_strips(x: Array, kernel1: Array, kernel2: Array, bias1: Array, bias2: Array, *, dtype: jnp.dtype) -> Array:
    """Some rows at a time, so that what is between the convolutions stays in the cache.

    In float32, with kernels rounded as elsewhere: half precision saves no time in these convolutions on a CPU.
    """
    kernel1, kernel2 = kernel1.astype(jnp.float32), kernel2.astype(jnp.float32)
    b, height, width, _ = x.shape
    rows = next(n for n in range(ROWS, 0, -1) if height // 4 % n == 0)
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (3, 0), (0, 0), (0, 0)))

    def strip(i: Array, out: Array) -> Array:
        above = lax.dynamic_slice_in_dim(padded, 4 * rows * i, 4 * rows + 3, axis=1)
        middle = gelu(conv3x3(above, kernel1, 2, pad_rows=False) + bias1)
        middle = jnp.where(jnp.arange(2 * rows + 1)[:, None, None] + i > 0, middle, 0)  # padding above the image
        y = conv3x3(middle, kernel2, 2, pad_rows=False) + bias2
        return lax.dynamic_update_slice_in_dim(out, y.astype(out.dtype), rows * i, axis=1)

    out = jnp.zeros((b, height // 4, width // 4, len(bias2)), dtype)
    return lax.fori_loop(0, height // 4 // rows, strip, out)

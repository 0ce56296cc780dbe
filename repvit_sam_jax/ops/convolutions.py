"""Products and convolutions in the form that is fast on the platform that they are compiled for."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def product(x: Float[Array, "*batch din"], kernel: Float[Array, "din dout"]) -> Float[Array, "*batch dout"]:
    """`x @ kernel`, in float32 at least.

    On CPU it is written as the product of two matrices: XLA:CPU takes up to five times as long for the kernel's
    gradient if that is a sum over several axes.
    """
    multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def of_matrices(x: Array, kernel: Array) -> Array:
        return multiply(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])

    return lax.platform_dependent(x, kernel, cpu=of_matrices, default=multiply)


def _depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _depthwise_shifts(x: Array, kernel: Array, stride: int) -> Array:
    """Nine shifted multiply-adds, in float32. XLA:CPU's grouped convolution is some fifty times slower than this."""
    h, w = (-(-n // stride) for n in x.shape[1:3])
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = kernel.astype(jnp.float32)
    windows = [
        padded[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride] * kernel[i, j]
        for i in range(3)
        for j in range(3)
    ]
    return functools.reduce(jnp.add, windows).astype(x.dtype)


def depthwise_conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"], stride: int = 1
) -> Float[Array, "b h2 w2 c"]:
    """3x3 depthwise convolution with padding 1, in the form that is fast on the platform it is compiled for."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_depthwise_shifts, stride=stride),
        default=functools.partial(_depthwise_conv, stride=stride),
    )


def conv3x3(
    x: Float[Array, "b h w cin"], kernel: Float[Array, "3 3 cin cout"], stride: int = 1, *, pad_rows: bool = True
) -> Float[Array, "b h2 w2 cout"]:
    """Dense 3x3 convolution with padding 1; without `pad_rows` there is none above and below."""
    strides, padding = (stride, stride), ((int(pad_rows),) * 2, (1, 1))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

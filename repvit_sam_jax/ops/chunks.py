"""Functions of many pixels or prompts, on some of them at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

PIXEL_CHUNK = 4096
"""Pixels that `over_pixels` takes at a time, at most; 1024, 2048 and 4096 take the same time."""


def over_pixels(
    f: Callable[[Array, Array | None], Array], x: Float[Array, "b h w c"], gate: Float[Array, "b c"] | None
) -> Float[Array, "b h w c"]:
    """`f` of pixels [..., c] and the gates of their image; on CPU some pixels at a time, in the place of `x`.

    So what `f` makes stays in the cache there, and little memory is touched for the first time, for which the kernel
    would have to find pages. There are two chunks at least: they are also what keeps XLA:CPU from fusing the depthwise
    convolutions in front of and behind `f`, and from computing `x` anew for every use of it.
    """
    return lax.platform_dependent(
        x,
        gate,
        cpu=functools.partial(pixels_in_chunks, f),
        default=lambda x, gate: f(x, None if gate is None else gate[:, None, None]),
    )


def pixels_in_chunks(f: Callable[[Array, Array | None], Array], x: Array, gate: Array | None) -> Array:
    """`f` of at most `PIXEL_CHUNK` pixels, and half of an image, at a time."""
    _, h, w, c = x.shape
    most = max(1, min(PIXEL_CHUNK, h * w // 2))
    size = next(n for n in range(most, 0, -1) if h * w % n == 0)
    chunks = x.reshape(-1, size, c)
    gates = None if gate is None else jnp.repeat(gate, h * w // size, axis=0)

    def chunk(i: Array | int, chunks: Array) -> Array:
        here = lax.dynamic_index_in_dim(chunks, i, keepdims=False)
        return f(here, None if gates is None else lax.dynamic_index_in_dim(gates, i, keepdims=False))

    if len(chunks) <= 2:  # side by side: what is not a product in one runs beside the other's products
        y = jnp.stack([chunk(i, chunks) for i in range(len(chunks))])
    else:
        update = lambda i, chunks: lax.dynamic_update_index_in_dim(chunks, chunk(i, chunks), i, 0)
        y = lax.fori_loop(0, len(chunks), update, chunks)
    return y.reshape(x.shape)


def over_prompts(f: Callable[..., Any], *arrays: Array) -> Any:
    """`f(*arrays)`, few prompts at a time; the prompts' axis is the second, and of length 1 in what all prompts share.

    On CPU it is one prompt, whose image tokens then stay in the cache; elsewhere 64. The temporary memory of 64 points
    is 39 MB on CPU, where all at once, and everything multiplied out, takes 1326 MB (docs/performance.md).
    """
    if max(array.shape[1] for array in arrays) == 1:
        return f(*arrays)
    return lax.platform_dependent(
        *arrays,
        cpu=functools.partial(prompts_in_chunks, f, 1),
        default=functools.partial(prompts_in_chunks, f, 64),
    )


def prompts_in_chunks(f: Callable[..., Any], size: int, *arrays: Array) -> Any:
    """`f(*arrays)` on so many prompts at a time."""
    count = max(array.shape[1] for array in arrays)
    if count <= size:
        return f(*arrays)
    own = [array for array in arrays if array.shape[1] == count]

    def one(own: list[Array]) -> Any:
        rest = iter(own)
        given = (next(rest)[:, None] if array.shape[1] == count else array for array in arrays)
        return jax.tree.map(lambda x: x[:, 0], f(*given))

    # Without a batch size there is no vmap, under which conditionals would compute both branches.
    mapped = lax.map(one, [jnp.moveaxis(x, 1, 0) for x in own], batch_size=size if size > 1 else None)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), mapped)


def of_wanted(f: Callable[..., Array], wanted: Bool[Array, "b p"], *arrays: Array) -> Array:
    """`f(*arrays)` for the wanted prompts, eight at a time; most others are zeros. All arrays are [B, P, ...]."""
    (b, p), made = wanted.shape, jax.eval_shape(f, *arrays)
    zeros = jnp.zeros(made.shape, made.dtype)
    if p == 1:
        return lax.cond(wanted.any(), lambda: f(*arrays), lambda: zeros)
    size, images = min(p, 8), jnp.arange(b)[:, None]
    order = jnp.argsort(~wanted, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -p % size)), mode="edge")

    def some(i: Array, results: Array) -> Array:
        numbers = lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
        return results.at[images, numbers].set(f(*(array[images, numbers] for array in arrays)))

    return lax.fori_loop(0, (wanted.sum(1).max() + size - 1) // size, some, zeros)

"""SAM's image encoder: a plain ViT with windowed and global attention (arXiv 2304.02643; 2203.16527 for the design).

Reference: facebookresearch/segment-anything, `modeling/image_encoder.py`. Deliberate difference: at another image size
than the weights were trained for, absolute positions are resized bilinearly; the official code can't run there.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ...config import ViTConfig
from ...ops.activations import gelu
from ...transforms import resize_bilinear
from ..layers import Intermediates, Keys, LayerNorm, Linear, Neck, scaled_normal
from .blocks import Remat, apply_blocks, in_windows

QUERY_CHUNK = 1024
"""Queries of global attention whose scores may exist at a time: those of all 4096 for 16 heads are 1 GB in float32."""


class PatchEmbed(nnx.Module):
    """Patches to tokens. `kernel` is [patch, patch, 3, dim]."""

    def __init__(self, patch: int, dim: int, *, dtype: jnp.dtype, rngs: Keys):
        self.kernel = nnx.Param(scaled_normal(rngs.params(), (patch, patch, 3, dim), 1 / (patch * patch * 3)))
        self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))
        self.patch, self.dtype = patch, dtype

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b hp wp dim"]:
        b, h, w, c = images.shape
        p = self.patch
        patches = images.astype(self.dtype).reshape(b, h // p, p, w // p, p, c)
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.einsum("bhiwjc,ijcd->bhwd", patches, kernel, preferred_element_type=jnp.float32)
        return (y + self.bias[...]).astype(self.dtype)


def relative_positions(table: Float[Array, "l d"], size: int) -> Float[Array, "size size d"]:
    """Entry [q, k] is the table's row for the distance q - k; a table of another length is resized linearly."""
    if table.shape[0] != 2 * size - 1:
        table = resize_bilinear(table.T[None], table.shape[1], 2 * size - 1)[0].T
    index = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
    return table[index]


class ViTAttention(nnx.Module):
    """Multi-head self-attention over a square of tokens, with decomposed relative positions (arXiv 2112.01526)."""

    def __init__(self, dim: int, num_heads: int, table_size: int, *, dtype: jnp.dtype, rngs: Keys):
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * table_size - 1, dim // num_heads), jnp.float32))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * table_size - 1, dim // num_heads), jnp.float32))
        self.num_heads, self.dtype = num_heads, dtype

    def __call__(self, x: Float[Array, "b s s c"]) -> Float[Array, "b s s c"]:
        b, size, _, c = x.shape
        heads, tokens = self.num_heads, size * size
        qkv = self.qkv(x).reshape(b, tokens, 3, heads, c // heads)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))  # [b, heads, tokens, d]
        q, k = self._with_positions(q, k, size)
        if tokens <= QUERY_CHUNK or tokens % QUERY_CHUNK:
            out = self._attend(q, k, v)
        else:
            # Some queries at a time, so that the scores of all tokens with all tokens never exist at once.
            chunks = q.reshape(b, heads, -1, QUERY_CHUNK, q.shape[-1]).transpose(2, 0, 1, 3, 4)
            out = lax.map(lambda chunk: self._attend(chunk, k, v), chunks)
            out = out.transpose(1, 2, 0, 3, 4).reshape(v.shape)
        return self.proj(out.swapaxes(1, 2).reshape(b, size, size, c))

    def _with_positions(self, q: Array, k: Array, size: int) -> tuple[Array, Array]:
        """Longer queries and keys, whose product is the scaled score plus the biases of rows and columns.

        The bias of query (h, w) for key (i, j) is `a[h, w, i] + b[h, w, j]`: append `a` and `b` to the query, and to
        the key two one-hot vectors that pick out i and j. So the scores need no second array of their size, and
        attention has the plain form that compilers know how to fuse.
        """
        grid = q.reshape(*q.shape[:2], size, size, q.shape[-1])
        biases = [
            jnp.einsum(product, grid, relative_positions(table[...], size).astype(self.dtype))
            for product, table in (("bnhwd,hkd->bnhwk", self.rel_pos_h), ("bnhwd,wkd->bnhwk", self.rel_pos_w))
        ]
        scaled = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(self.dtype)
        q = jnp.concatenate([scaled, *(bias.reshape(*q.shape[:3], size) for bias in biases)], axis=-1)
        one_hot = jnp.eye(size, dtype=self.dtype)
        places = jnp.concatenate([jnp.repeat(one_hot, size, axis=0), jnp.tile(one_hot, (size, 1))], axis=-1)
        return q, jnp.concatenate([k, jnp.broadcast_to(places, (*k.shape[:3], 2 * size))], axis=-1)

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        """Queries [b, heads, q, d] against all keys; scores and softmax in float32."""
        scores = jnp.einsum("bnqd,bnkd->bnqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        return jnp.einsum("bnqk,bnkd->bnqd", weights, v, preferred_element_type=jnp.float32).astype(self.dtype)


class ViTMLP(nnx.Module):
    """`lin2(gelu(lin1(x)))`."""

    def __init__(self, dim: int, hidden: int, *, dtype: jnp.dtype, rngs: Keys):
        self.lin1 = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.lin2 = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        return self.lin2(gelu(self.lin1(x)))


class ViTBlock(nnx.Module):
    """Attention, within windows or over the whole image, and an MLP, both residual and normalised in front."""

    def __init__(self, config: ViTConfig, *, window: int, dtype: jnp.dtype, rngs: Keys):
        dim = config.embed_dim
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm1 = LayerNorm(dim, epsilon=1e-6, **common)
        self.attn = ViTAttention(dim, config.num_heads, window or config.grid_size, **common)
        self.norm2 = LayerNorm(dim, epsilon=1e-6, **common)
        self.mlp = ViTMLP(dim, config.mlp_dim or 4 * dim, **common)
        self.window = window

    def __call__(self, x: Float[Array, "b s s c"], train: bool = False) -> Float[Array, "b s s c"]:
        del train  # there is no BatchNorm
        y = self.norm1(x)
        x = x + (in_windows(self.attn, y, self.window) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))


class ViTEncoder(nnx.Module):
    """Normalised image to image embedding, at 1/16 of its size."""

    def __init__(self, config: ViTConfig, out_channels: int, *, dtype: jnp.dtype, rngs: Keys):
        self.config, self.dtype = config, dtype
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((config.grid_size, config.grid_size, config.embed_dim), jnp.float32))
        blocks = {}
        for i in range(config.depth):
            window = 0 if i in config.global_attn_indexes else config.window_size
            blocks[str(i)] = ViTBlock(config, window=window, dtype=dtype, rngs=rngs)
        self.blocks = nnx.Dict(blocks)
        self.neck = Neck(config.embed_dim, out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False, remat: Remat = "none"
    ) -> tuple[Float[Array, "b h16 w16 c"], Intermediates]:
        """Embed images. There is no BatchNorm, so `train` changes nothing.

        Intermediates are `stem`, `blocks.0`, ..., `neck`, `embedding`.
        """
        del train
        stem = self.patch_embed(images)
        positions = self.pos_embed[...]
        if positions.shape[0] != stem.shape[1]:
            resized = resize_bilinear(positions.transpose(2, 0, 1), *stem.shape[1:3])
            positions = resized.transpose(1, 2, 0)
        x = stem + positions.astype(self.dtype)
        x, intermediates = apply_blocks(self.blocks, self.config.runs(), x, remat=remat)
        embedding, ends = self.neck(x)
        return embedding, {"stem": stem, **intermediates, **ends}

"""TinyViT (arXiv 2207.10666) as MobileSAM's image encoder (arXiv 2306.14289), with SAM's neck on top.

Reference: ChaoningZhang/MobileSAM, `mobile_sam/modeling/tiny_vit_sam.py`. Deliberate difference: the official code runs
at 1024 only; here any multiple of 16 works, as nothing in the network depends on the image's size.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ...config import TinyViTConfig
from ...ops.activations import gelu
from ..layers import Intermediates, Keys, LayerNorm, Linear, Neck, conv_bn
from .blocks import Remat, apply_blocks, apply_run, in_windows
from .repvit import Stem


class MBConv(nnx.Module):
    """`gelu(x + project(gelu(depthwise(gelu(expand(x))))))`."""

    def __init__(self, channels: int, expansion: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        hidden = expansion * channels
        self.conv1 = conv_bn("pointwise", channels, hidden, **common)
        self.conv2 = conv_bn("depthwise3x3", hidden, hidden, **common)
        self.conv3 = conv_bn("pointwise", hidden, channels, scale_init=0.0, **common)

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        y = gelu(self.conv2(gelu(self.conv1(x, train)), train))
        return gelu(x + self.conv3(y, train))


class PatchMerging(nnx.Module):
    """To the next stage's width, and with stride 2 to half the resolution."""

    def __init__(self, cin: int, cout: int, stride: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.conv1 = conv_bn("pointwise", cin, cout, **common)
        self.conv2 = conv_bn("depthwise3x3", cout, cout, stride=stride, **common)
        self.conv3 = conv_bn("pointwise", cout, cout, **common)

    def __call__(self, x: Float[Array, "b h w cin"], train: bool = False) -> Float[Array, "b h2 w2 cout"]:
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x, train)), train)), train)


class TinyViTAttention(nnx.Module):
    """Multi-head self-attention over a window, with a bias for each head and absolute offset of two tokens.

    It normalises its input itself, the zeros that pad the last windows included.
    """

    def __init__(self, dim: int, num_heads: int, window: int, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm = LayerNorm(dim, epsilon=1e-5, **common)
        self.qkv = Linear(dim, 3 * dim, **common)
        self.proj = Linear(dim, dim, **common)
        # Column `window * dy + dx` is for tokens that are dy rows and dx columns apart.
        self.attention_biases = nnx.Param(jnp.zeros((num_heads, window * window), jnp.float32))
        self.num_heads, self.window, self.dtype = num_heads, window, dtype

    def __call__(self, x: Float[Array, "b s s c"]) -> Float[Array, "b s s c"]:
        b, size, _, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, size * size, self.num_heads, 3, c // self.num_heads)
        q, k, v = (qkv[:, :, :, i].swapaxes(1, 2) for i in range(3))  # [b, heads, tokens, d]
        exact = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("bnqd,bnkd->bnqk", q, k, **exact) / math.sqrt(q.shape[-1])
        scores = scores + self.attention_biases[...][:, _offsets(self.window)]
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        out = jnp.einsum("bnqk,bnkd->bqnd", weights, v, **exact).astype(self.dtype)
        return self.proj(out.reshape(b, size, size, c))


def _offsets(window: int) -> np.ndarray:
    """For two tokens of a window, the column of the table of biases: [tokens, tokens]."""
    y, x = np.divmod(np.arange(window * window), window)
    return window * np.abs(y[:, None] - y) + np.abs(x[:, None] - x)


class TinyViTMLP(nnx.Module):
    """`fc2(gelu(fc1(norm(x))))`."""

    def __init__(self, dim: int, hidden: int, *, dtype: jnp.dtype, rngs: Keys):
        self.norm = LayerNorm(dim, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.fc1 = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        return self.fc2(gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nnx.Module):
    """Attention within windows, a depthwise convolution and an MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        mlp_ratio: int,
        *,
        deploy: bool,
        dtype: jnp.dtype,
        rngs: Keys,
    ):
        self.attn = TinyViTAttention(dim, num_heads, window, dtype=dtype, rngs=rngs)
        self.local_conv = conv_bn("depthwise3x3", dim, dim, deploy=deploy, dtype=dtype, rngs=rngs)
        self.mlp = TinyViTMLP(dim, mlp_ratio * dim, dtype=dtype, rngs=rngs)
        self.window = window

    def __call__(self, x: Float[Array, "b s s c"], train: bool = False) -> Float[Array, "b s s c"]:
        x = x + in_windows(self.attn, x, self.window)
        x = self.local_conv(x, train)
        return x + self.mlp(x)


class Stage(nnx.Module):
    """Equal blocks, and what merges patches behind them, except in the last stage."""

    def __init__(self, config: TinyViTConfig, index: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        channels = config.channels[index]

        def block() -> MBConv | TinyViTBlock:
            if index == 0:
                return MBConv(channels, config.expansion, **common)
            heads, window = config.num_heads[index], config.window_sizes[index]
            return TinyViTBlock(channels, heads, window, config.mlp_ratio, **common)

        self.blocks = nnx.Dict({str(i): block() for i in range(config.depths[index])})
        following = config.channels[index + 1 :]
        # The last merging keeps the resolution, so that the embedding has 1/16 of the image's side.
        stride = 1 if len(following) == 1 else 2
        self.downsample = PatchMerging(channels, following[0], stride, **common) if following else nnx.data(None)

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, remat: Remat
    ) -> tuple[Float[Array, "b h2 w2 c2"], Intermediates]:
        run = [(i,) for i in range(len(self.blocks))]
        x, intermediates = apply_blocks(self.blocks, [run], x, train=train, remat=remat)
        if self.downsample is None:
            return x, intermediates
        x = self.downsample(x, train)
        return x, {**intermediates, "downsample": x}


class TinyViTEncoder(nnx.Module):
    """Normalised image to image embedding, at 1/16 of its size."""

    def __init__(self, config: TinyViTConfig, out_channels: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.dtype = dtype
        self.patch_embed = Stem(config.channels[0], **common)
        self.layers = nnx.Dict({str(i): Stage(config, i, **common) for i in range(len(config.channels))})
        # The classifier's end. Nothing uses it; it is here because the published checkpoint has it.
        self.norm_head = LayerNorm(config.channels[-1], epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.head = Linear(config.channels[-1], config.num_classes, dtype=dtype, rngs=rngs)
        self.neck = Neck(config.channels[-1], out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False, remat: Remat = "none"
    ) -> tuple[Float[Array, "b h16 w16 c"], Intermediates]:
        """Embed images; with `train`, normalise by batch statistics and update the running ones in place.

        Intermediates are `stem`, `layers.0.blocks.0`, ..., `layers.0.downsample`,
        ..., `neck`, `embedding`.
        """
        x, _ = apply_run([[self.patch_embed]], images.astype(self.dtype), train=train, remat=remat)
        intermediates = {"stem": x}
        for i, layer in self.layers.items():
            x, within = layer(x, train, remat)
            intermediates |= {f"layers.{i}.{name}": y for name, y in within.items()}
        embedding, ends = self.neck(x)
        return embedding, intermediates | ends

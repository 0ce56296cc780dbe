"""SAM's two-way transformer between prompt tokens and image tokens (arXiv 2304.02643, appendix A).

All arrays carry [B, P] in front: images and prompts per image. The image side may have P = 1 while its content is the
same for all prompts of an image; it broadcasts, so the first layer projects it once per image and not once per prompt.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from .config import MaskDecoderConfig
from .layers import MLP, Keys, LayerNorm, Linear, Stages

Tokens = Float[Array, "b p t c"]


class Attention(nnx.Module):
    """Multi-head attention whose inner width may be smaller than the embedding. Softmax is float32."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1, *, dtype: jnp.dtype, rngs: Keys):
        inner = dim // downsample_rate
        if inner % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the attention width {inner}")
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.q_proj = Linear(dim, inner, **common)
        self.k_proj = Linear(dim, inner, **common)
        self.v_proj = Linear(dim, inner, **common)
        self.out_proj = Linear(inner, dim, **common)
        self.num_heads, self.dtype = num_heads, dtype

    def __call__(
        self, q: Tokens, k: Tokens, v: Tokens, key_valid: Bool[Array, "b p k"] | None = None
    ) -> Float[Array, "b p q c"]:
        q, k, v = (self._heads(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
        if key_valid is not None:
            scores = jnp.where(key_valid[:, :, None, None, :], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        out = jnp.matmul(weights, v, preferred_element_type=jnp.float32).astype(self.dtype)
        b, p, h, n, d = out.shape
        return self.out_proj(out.swapaxes(2, 3).reshape(b, p, n, h * d))

    def _heads(self, x: Array) -> Array:
        b, p, n, c = x.shape
        return x.reshape(b, p, n, self.num_heads, c // self.num_heads).swapaxes(2, 3)


class TwoWayBlock(nnx.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens."""

    def __init__(self, config: MaskDecoderConfig, *, first: bool, dtype: jnp.dtype, rngs: Keys):
        dim, heads, rate = config.embed_dim, config.num_heads, config.attention_downsample_rate
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.self_attn = Attention(dim, heads, **common)
        self.norm1 = LayerNorm(dim, epsilon=1e-5, **common)
        self.cross_attn_token_to_image = Attention(dim, heads, rate, **common)
        self.norm2 = LayerNorm(dim, epsilon=1e-5, **common)
        self.mlp = MLP((dim, config.mlp_dim, dim), **common)
        self.norm3 = LayerNorm(dim, epsilon=1e-5, **common)
        self.cross_attn_image_to_token = Attention(dim, heads, rate, **common)
        self.norm4 = LayerNorm(dim, epsilon=1e-5, **common)
        self.first = first

    def __call__(
        self, tokens: Tokens, image: Tokens, token_pe: Tokens, image_pe: Tokens, token_valid: Bool[Array, "b p t"]
    ) -> tuple[Tokens, Tokens]:
        if self.first:  # the tokens are still their own positional encoding here
            tokens = self.self_attn(tokens, tokens, tokens, token_valid)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, token_valid)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens, token_valid)
        return tokens, self.norm4(image + update)


class TwoWayTransformer(nnx.Module):
    """The blocks and a last attention from tokens to image."""

    def __init__(self, config: MaskDecoderConfig, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.layers = nnx.Dict({str(i): TwoWayBlock(config, first=i == 0, **common) for i in range(config.depth)})
        self.final_attn_token_to_image = Attention(
            config.embed_dim, config.num_heads, config.attention_downsample_rate, **common
        )
        self.norm_final_attn = LayerNorm(config.embed_dim, epsilon=1e-5, **common)
        self.dtype = dtype

    def __call__(
        self,
        image: Tokens,
        image_pe: Tokens,
        tokens: Tokens,
        token_valid: Bool[Array, "b p t"],
        stages: Stages | None = None,
    ) -> tuple[Tokens, Tokens]:
        """Tokens and image tokens after mutual attention; tokens that are not valid influence nothing."""
        image, image_pe, token_pe = image.astype(self.dtype), image_pe.astype(self.dtype), tokens.astype(self.dtype)
        tokens = token_pe
        record = {} if stages is None else stages
        for name, layer in self.layers.items():
            tokens, image = layer(tokens, image, token_pe, image_pe, token_valid)
            record[f"transformer.{name}.tokens"], record[f"transformer.{name}.image"] = tokens, image
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        record["transformer.final"] = tokens = self.norm_final_attn(tokens + attended)
        return tokens, image

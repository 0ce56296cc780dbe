"""SAM's two-way transformer between prompt tokens and image tokens (arXiv 2304.02643, appendix A).

All arrays carry [B, P] in front: images, and prompts of an image. The image side may have P = 1 while its content is
the same for all prompts of an image. `ops.attention` says in which order products are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ..config import MaskDecoderConfig
from ..ops.attention import (
    Shared,
    Weights,
    join_heads,
    left_over,
    matmul,
    mixtures,
    scores,
    split_heads,
    tokens_first,
    updates,
)
from .layers import MLP, Intermediates, Keys, LayerNorm, Linear

Tokens = Float[Array, "b p t c"]
ImageTokens = Float[Array, "b p n c"]
Valid = Bool[Array, "b p t"]


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
        self.num_heads, self.inner, self.dtype = num_heads, inner, dtype

    def __call__(self, q: Tokens, k: Tokens, v: Tokens, key_valid: Valid) -> Tokens:
        q, k, v = (self.split(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        logits = matmul(q, k.mT) / math.sqrt(q.shape[-1])
        logits = jnp.where(key_valid[:, :, None, None, :], logits, -jnp.inf)
        attention = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        return self.out_proj(join_heads(matmul(attention, v), self.dtype))

    def split(self, x: Float[Array, "*batch n inner"]) -> Float[Array, "*batch h n d"]:
        return split_heads(x, self.num_heads)

    def weights(self, linear: Linear) -> Weights:
        return Weights(linear.kernel[...].astype(self.dtype), linear.bias[...])


class TokenToImage(Attention):
    """Prompt tokens attend to image tokens."""

    def __call__(  # type: ignore[override]
        self, tokens: Tokens, image: ImageTokens, image_pe: ImageTokens, shared: Shared | None = None
    ) -> Tokens:
        """Keys are image tokens with their positions, values those without."""
        keys, values = (None, None) if shared is None else (shared.keys, shared.values)
        q = self.split(self.q_proj(tokens))
        logits = scores(q, self.weights(self.k_proj), left_over(image, image_pe, shared), keys)
        attention = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        return self.out_proj(join_heads(mixtures(attention, self.weights(self.v_proj), image, values), self.dtype))


class ImageToToken(Attention):
    """Image tokens attend to prompt tokens."""

    def __call__(  # type: ignore[override]
        self,
        image: ImageTokens,
        image_pe: ImageTokens,
        k: Tokens,
        v: Tokens,
        token_valid: Valid,
        shared: Shared | None = None,
    ) -> ImageTokens:
        """Queries are image tokens with their positions."""
        queries = None if shared is None else shared.queries
        k, v = self.split(self.k_proj(k)), self.split(self.v_proj(v))
        # Tokens stand before image tokens, so that the softmax over tokens runs along whole vectors of image tokens.
        logits = scores(k, self.weights(self.q_proj), left_over(image, image_pe, shared), queries)
        logits += jnp.where(token_valid, 0.0, -jnp.inf)[:, :, None, :, None]
        attention = jax.nn.softmax(logits, axis=-2).astype(self.dtype)
        return updates(attention, v, self.weights(self.out_proj))


class TwoWayBlock(nnx.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens."""

    def __init__(self, config: MaskDecoderConfig, *, first: bool, dtype: jnp.dtype, rngs: Keys):
        dim, heads, rate = config.embed_dim, config.num_heads, config.attention_downsample_rate
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.self_attn = Attention(dim, heads, **common)
        self.norm1 = LayerNorm(dim, epsilon=1e-5, **common)
        self.cross_attn_token_to_image = TokenToImage(dim, heads, rate, **common)
        self.norm2 = LayerNorm(dim, epsilon=1e-5, **common)
        self.mlp = MLP((dim, config.mlp_dim, dim), **common)
        self.norm3 = LayerNorm(dim, epsilon=1e-5, **common)
        self.cross_attn_image_to_token = ImageToToken(dim, heads, rate, **common)
        self.norm4 = LayerNorm(dim, epsilon=1e-5, **common)
        self.first = first

    def share(self, image: ImageTokens | None, image_pe: ImageTokens) -> Shared:
        """The part of the block that no prompt has a say in: `image` is None if it differs between prompts."""
        ask, answer = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        placed = image_pe if image is None else image + image_pe
        values = None if image is None else ask.split(ask.v_proj(image))
        return Shared(ask.split(ask.k_proj(placed)).mT, answer.split(answer.q_proj(placed)).mT, values)

    def __call__(
        self,
        tokens: Tokens,
        image: ImageTokens,
        token_pe: Tokens,
        image_pe: ImageTokens,
        token_valid: Valid,
        shared: Shared | None = None,
    ) -> tuple[Tokens, ImageTokens]:
        if self.first:  # the tokens are still their own positional encoding here
            tokens = self.self_attn(tokens, tokens, tokens, token_valid)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, token_valid)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image, image_pe, shared))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(image, image_pe, tokens + token_pe, tokens, token_valid, shared)
        return tokens, self.norm4(image + update)


class TwoWayTransformer(nnx.Module):
    """The blocks and a last attention from tokens to image."""

    def __init__(self, config: MaskDecoderConfig, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.layers = nnx.Dict({str(i): TwoWayBlock(config, first=i == 0, **common) for i in range(config.depth)})
        self.final_attn_token_to_image = TokenToImage(
            config.embed_dim, config.num_heads, config.attention_downsample_rate, **common
        )
        self.norm_final_attn = LayerNorm(config.embed_dim, epsilon=1e-5, **common)
        self.dtype = dtype

    def share(self, image: ImageTokens, image_pe: ImageTokens, tokens: Tokens) -> dict[str, Shared]:
        """What all prompts share, by block; nothing if so few tokens ask that it does not pay."""
        last, (p, t) = self.final_attn_token_to_image, tokens.shape[1:3]
        if tokens_first(last.num_heads, p * t, last.inner):
            return {}
        same = image if image.shape[1] == 1 else None
        shared = {name: layer.share(same if layer.first else None, image_pe) for name, layer in self.layers.items()}
        return {**shared, "final": Shared(last.split(last.k_proj(image_pe)).mT)}

    def __call__(
        self,
        image: ImageTokens,
        image_pe: ImageTokens,
        tokens: Tokens,
        token_valid: Valid,
        shared: Mapping[str, Shared],
    ) -> tuple[Tokens, ImageTokens, Intermediates]:
        """Tokens and image tokens after mutual attention; tokens that are not valid influence nothing.

        `shared` is what `share` made of the same image tokens.
        """
        token_pe = tokens = tokens.astype(self.dtype)
        intermediates: Intermediates = {}
        for name, layer in self.layers.items():
            tokens, image = layer(tokens, image, token_pe, image_pe, token_valid, shared.get(name))
            intermediates |= {f"transformer.{name}.tokens": tokens, f"transformer.{name}.image": image}
        attended = self.final_attn_token_to_image(tokens + token_pe, image, image_pe, shared.get("final"))
        tokens = self.norm_final_attn(tokens + attended)
        return tokens, image, {**intermediates, "transformer.final": tokens}

"""SAM's two-way transformer between prompt tokens and image tokens (arXiv 2304.02643, appendix A).

All arrays carry [B, P] in front: images and prompts per image. The image side may have P = 1 while its content is the
same for all prompts of an image.

An image has thousands of tokens and a prompt a handful, so time goes into products of image tokens, weights and prompt
tokens. They are taken in the cheaper order: (X W) q where many prompts share X W, else X (W q).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from .config import MaskDecoderConfig
from .layers import MLP, Keys, LayerNorm, Linear, Stages

Tokens = Float[Array, "b p t c"]
ImageTokens = Float[Array, "b p n c"]
Heads = Float[Array, "b p h t d"]
Valid = Bool[Array, "b p t"]

_matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


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
        q, k, v = (self._split(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        scores = _matmul(q, k.mT) / math.sqrt(q.shape[-1])
        scores = jnp.where(key_valid[:, :, None, None, :], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        return self.out_proj(self._join(_matmul(weights, v)))

    def _split(self, x: Float[Array, "*batch n inner"]) -> Float[Array, "*batch h n d"]:
        return x.reshape(*x.shape[:-1], self.num_heads, -1).swapaxes(-2, -3)

    def _join(self, x: Float[Array, "*batch h n d"]) -> Float[Array, "*batch n inner"]:
        x = x.astype(self.dtype).swapaxes(-2, -3)
        return x.reshape(*x.shape[:-2], -1)


class Shared(NamedTuple):
    """Projections of what all prompts share: of the positions alone (`values` is None), or of whole image tokens."""

    keys: Float[Array, "b p h d n"]
    queries: Float[Array, "b p h d n"] | None = None
    values: Float[Array, "b p h n d"] | None = None


def _left_over(image: ImageTokens, image_pe: ImageTokens, shared: Shared | None) -> ImageTokens | None:
    """Image tokens with their positions, less what `shared` holds already."""
    if shared is None:
        return image + image_pe
    return image if shared.values is None else None


class CrossAttention(Attention):
    """What both directions between prompt tokens and image tokens have in common.

    With T tokens a prompt and h heads, h T vectors take the place of the inner width when tokens meet weights first.
    """

    def _project(self, proj: Linear, image: ImageTokens) -> Float[Array, "b p h d n"]:
        """`proj(image)` as the products with prompt tokens want it."""
        return self._split(proj(image)).mT

    def _tokens_first(self, tokens: Heads) -> bool:
        return tokens.shape[2] * tokens.shape[3] < self.inner

    def _scores(
        self, tokens: Heads, proj: Linear, image: ImageTokens | None, shared: Float[Array, "b p h d n"] | None
    ) -> Float[Array, "b p h t n"]:
        """Products of tokens with `proj(image)`, head by head.

        `shared` is the projection of a part of the image tokens that is the same for all prompts, and `image` the
        rest of them; one of the two may be None.
        """
        tokens = tokens / math.sqrt(tokens.shape[-1])
        if image is None:
            assert shared is not None
            return _matmul(tokens, shared)
        kernel, bias = proj.kernel[...].astype(self.dtype), proj.bias[...].reshape(self.num_heads, -1, 1)
        shared = bias.astype(self.dtype) if shared is None else shared
        if not self._tokens_first(tokens):
            return _matmul(tokens, (self._split(_matmul(image, kernel)).mT + shared).astype(self.dtype))
        b, p, h, t, _ = tokens.shape
        folded = _matmul(tokens, self._split(kernel).mT).astype(self.dtype).reshape(b, p, h * t, -1)
        # Image tokens on the left: in the other order they would be transposed in memory, 4 MB a prompt.
        return _matmul(image, folded.mT).mT.reshape(b, p, h, t, -1) + _matmul(tokens, shared)


class TokenToImage(CrossAttention):
    """Prompt tokens attend to image tokens."""

    def __call__(  # type: ignore[override]
        self, tokens: Tokens, placed: ImageTokens | None, image: ImageTokens, shared: Shared | None = None
    ) -> Tokens:
        """`placed` are the image tokens with their positions, less what is in `shared.keys`."""
        q = self._split(self.q_proj(tokens))
        scores = self._scores(q, self.k_proj, placed, None if shared is None else shared.keys)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        b, p, h, t, n = weights.shape
        if shared is not None and shared.values is not None:
            attended = _matmul(weights, shared.values)
        elif self._tokens_first(q):
            kernel, bias = self.v_proj.kernel[...].astype(self.dtype), self.v_proj.bias[...]
            mixed = _matmul(weights.reshape(b, p, h * t, n), image).astype(self.dtype)
            attended = _matmul(mixed.reshape(b, p, h, t, -1), self._split(kernel)) + bias.reshape(h, 1, -1)
        else:
            attended = _matmul(weights, self._split(self.v_proj(image)))
        return self.out_proj(self._join(attended))


class ImageToToken(CrossAttention):
    """Image tokens attend to prompt tokens."""

    def __call__(
        self, placed: ImageTokens | None, k: Tokens, v: Tokens, token_valid: Valid, shared: Shared | None = None
    ) -> ImageTokens:
        """`placed` are the image tokens with their positions, less what is in `shared.queries`."""
        k, v = self._split(self.k_proj(k)), self._split(self.v_proj(v))
        # Tokens stand before image tokens, so that the softmax over tokens runs along whole vectors of image tokens.
        scores = self._scores(k, self.q_proj, placed, None if shared is None else shared.queries)
        scores += jnp.where(token_valid, 0.0, -jnp.inf)[:, :, None, :, None]
        weights = jax.nn.softmax(scores, axis=-2).astype(self.dtype)
        if not self._tokens_first(v):
            return self.out_proj(self._join(_matmul(weights.mT, v)))
        b, p, h, t, n = weights.shape
        kernel = self.out_proj.kernel[...].astype(self.dtype).reshape(h, -1, self.out_proj.kernel.shape[-1])
        values = _matmul(v, kernel).astype(self.dtype).reshape(b, p, h * t, -1)
        update = _matmul(weights.reshape(b, p, h * t, n).mT, values)
        return (update + self.out_proj.bias[...]).astype(self.dtype)


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
        values = None if image is None else ask._split(ask.v_proj(image))
        return Shared(ask._project(ask.k_proj, placed), answer._project(answer.q_proj, placed), values)

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
        placed = _left_over(image, image_pe, shared)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, placed, image, shared))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(placed, tokens + token_pe, tokens, token_valid, shared)
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

    def share(self, image: ImageTokens | None, image_pe: ImageTokens, count: int) -> dict[str, Shared]:
        """The blocks' parts that `count` prompt tokens share, unless these are so few that it does not pay."""
        last = self.final_attn_token_to_image
        if last.num_heads * count < last.inner:
            return {}
        shared = {name: layer.share(image if layer.first else None, image_pe) for name, layer in self.layers.items()}
        return {**shared, "final": Shared(last._project(last.k_proj, image_pe))}

    def __call__(
        self,
        image: ImageTokens,
        image_pe: ImageTokens,
        tokens: Tokens,
        token_valid: Valid,
        shared: Mapping[str, Shared],
        stages: Stages | None = None,
    ) -> tuple[Tokens, ImageTokens]:
        """Tokens and image tokens after mutual attention; tokens that are not valid influence nothing.

        `shared` is what `share` made of the same image tokens.
        """
        token_pe = tokens = tokens.astype(self.dtype)
        record = {} if stages is None else stages
        for name, layer in self.layers.items():
            tokens, image = layer(tokens, image, token_pe, image_pe, token_valid, shared.get(name))
            record[f"transformer.{name}.tokens"], record[f"transformer.{name}.image"] = tokens, image
        placed = _left_over(image, image_pe, shared.get("final"))
        attended = self.final_attn_token_to_image(tokens + token_pe, placed, image, shared.get("final"))
        record["transformer.final"] = tokens = self.norm_final_attn(tokens + attended)
        return tokens, image

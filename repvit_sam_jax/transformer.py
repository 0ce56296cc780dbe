"""SAM's two-way transformer between prompt tokens and image tokens (arXiv 2304.02643, appendix A).

All arrays carry [B, P] in front: images and prompts per image. The image side may have P = 1 while its content is the
same for all prompts of an image.

An image has thousands of tokens and a prompt a handful, so time goes into products of image tokens, weights and prompt
tokens. They are taken in the cheaper order: (X W) q where many prompts share X W, else X (W q).
"""

from __future__ import annotations

import functools
import math
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
        weights = self._softmax(_matmul(q, k.mT), -1, key_valid[:, :, None, None, :])
        return self.out_proj(self._join(_matmul(weights, v)))

    def _softmax(self, scores: Array, axis: int, valid: Array | None = None) -> Array:
        scores = scores / math.sqrt(self.inner // self.num_heads)
        if valid is not None:
            scores = jnp.where(valid, scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=axis).astype(self.dtype)

    def _split(self, x: Float[Array, "*batch n inner"]) -> Float[Array, "*batch h n d"]:
        return x.reshape(*x.shape[:-1], self.num_heads, -1).swapaxes(-2, -3)

    def _join(self, x: Float[Array, "*batch h n d"]) -> Float[Array, "*batch n inner"]:
        x = x.astype(self.dtype).swapaxes(-2, -3)
        return x.reshape(*x.shape[:-2], -1)


class CrossAttention(Attention):
    """What both directions between prompt tokens and image tokens share.

    With T tokens a prompt and h heads, h T vectors take the place of the inner width when tokens meet weights first.
    """

    def _tokens_first(self, tokens: Heads) -> bool:
        return tokens.shape[2] * tokens.shape[3] < self.inner

    def _scores(
        self, tokens: Heads, image: ImageTokens, proj: Linear, projected: Float[Array, "b p n inner"] | None
    ) -> Float[Array, "b p h t n"]:
        """Products of tokens with `proj(image)`, head by head; `projected` is that projection if there is one."""
        if projected is not None or not self._tokens_first(tokens):
            return _matmul(tokens, self._split(proj(image) if projected is None else projected).mT)
        b, p, h, t, _ = tokens.shape
        kernel, bias = proj.kernel[...].astype(self.dtype), proj.bias[...]
        folded = _matmul(tokens, self._split(kernel).mT).astype(self.dtype)
        constant = (tokens * bias.reshape(h, 1, -1)).sum(-1, keepdims=True)
        return _matmul(folded.reshape(b, p, h * t, -1), image.mT).reshape(b, p, h, t, -1) + constant


class TokenToImage(CrossAttention):
    """Prompt tokens attend to image tokens."""

    def __call__(  # type: ignore[override]
        self, tokens: Tokens, placed: ImageTokens, image: ImageTokens, projected: Projected | None = None
    ) -> Tokens:
        """`placed` are the image tokens with their positions added."""
        q = self._split(self.q_proj(tokens))
        weights = self._softmax(self._scores(q, placed, self.k_proj, projected and projected.keys), -1)
        if projected is not None or not self._tokens_first(q):
            values = self.v_proj(image) if projected is None else projected.values
            return self.out_proj(self._join(_matmul(weights, self._split(values))))
        b, p, h, t, n = weights.shape
        kernel, bias = self.v_proj.kernel[...].astype(self.dtype), self.v_proj.bias[...]
        mixed = _matmul(weights.reshape(b, p, h * t, n), image).astype(self.dtype)
        attended = _matmul(mixed.reshape(b, p, h, t, -1), self._split(kernel)) + bias.reshape(h, 1, -1)
        return self.out_proj(self._join(attended))


class ImageToToken(CrossAttention):
    """Image tokens attend to prompt tokens."""

    def __call__(  # type: ignore[override]
        self, placed: ImageTokens, k: Tokens, v: Tokens, token_valid: Valid, projected: Projected | None = None
    ) -> ImageTokens:
        """`placed` are the image tokens with their positions added."""
        k, v = self._split(self.k_proj(k)), self._split(self.v_proj(v))
        # Tokens stand before image tokens, so that the softmax over tokens runs along whole vectors of image tokens.
        scores = self._scores(k, placed, self.q_proj, projected and projected.queries)
        weights = self._softmax(scores, -2, token_valid[:, :, None, :, None])
        if not self._tokens_first(v):
            return self.out_proj(self._join(_matmul(weights.mT, v)))
        b, p, h, t, n = weights.shape
        kernel = self.out_proj.kernel[...].astype(self.dtype).reshape(h, -1, self.out_proj.kernel.shape[-1])
        values = _matmul(v, kernel).astype(self.dtype).reshape(b, p, h * t, -1)
        update = _matmul(weights.reshape(b, p, h * t, n).mT, values)
        return (update + self.out_proj.bias[...]).astype(self.dtype)


class Projected(NamedTuple):
    """Image tokens after the projections of a block's two cross-attentions."""

    keys: Float[Array, "b p n inner"]
    values: Float[Array, "b p n inner"]
    queries: Float[Array, "b p n inner"]


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

    def project(self, image: ImageTokens, image_pe: ImageTokens) -> Projected:
        """The part of the block that no prompt has a say in."""
        placed = image + image_pe
        tokens_ask, image_asks = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        return Projected(tokens_ask.k_proj(placed), tokens_ask.v_proj(image), image_asks.q_proj(placed))

    def __call__(
        self,
        tokens: Tokens,
        image: ImageTokens,
        token_pe: Tokens,
        image_pe: ImageTokens,
        token_valid: Valid,
        projected: Projected | None = None,
    ) -> tuple[Tokens, ImageTokens]:
        if self.first:  # the tokens are still their own positional encoding here
            tokens = self.self_attn(tokens, tokens, tokens, token_valid)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, token_valid)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, placed, image, projected))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(placed, tokens + token_pe, tokens, token_valid, projected)
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

    def project(self, image: ImageTokens, image_pe: ImageTokens, token_count: int) -> Projected | None:
        """The first block's projections of image tokens that `token_count` prompt tokens share, if that pays."""
        first: TwoWayBlock = self.layers["0"]
        attention = first.cross_attn_token_to_image
        return first.project(image, image_pe) if attention.num_heads * token_count >= attention.inner else None

    def __call__(
        self,
        image: ImageTokens,
        image_pe: ImageTokens,
        tokens: Tokens,
        token_valid: Valid,
        projected: Projected | None = None,
        stages: Stages | None = None,
    ) -> tuple[Tokens, ImageTokens]:
        """Tokens and image tokens after mutual attention; tokens that are not valid influence nothing.

        `projected` is what `project` made of the same image tokens.
        """
        token_pe = tokens = tokens.astype(self.dtype)
        record = {} if stages is None else stages
        for name, layer in self.layers.items():
            tokens, image = layer(tokens, image, token_pe, image_pe, token_valid, projected if layer.first else None)
            record[f"transformer.{name}.tokens"], record[f"transformer.{name}.image"] = tokens, image
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        record["transformer.final"] = tokens = self.norm_final_attn(tokens + attended)
        return tokens, image

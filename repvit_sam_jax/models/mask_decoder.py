"""SAM's mask decoder (arXiv 2304.02643, appendix A; facebookresearch/segment-anything)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ..config import MaskDecoderConfig
from ..ops.attention import Shared
from ..ops.chunks import of_wanted
from ..ops.upscaling import Norm, PatchExpansion, masks_of
from .layers import MLP, Intermediates, Keys, LayerNorm
from .transformer import TwoWayTransformer


class PatchExpand(nnx.Module):
    """A 2x2 transposed convolution with stride 2. `kernel` is [cin, 2, 2, cout]."""

    def __init__(self, cin: int, cout: int, *, dtype: jnp.dtype, rngs: Keys):
        scale = 1 / math.sqrt(cin)
        self.kernel = nnx.Param(
            scale * jax.random.truncated_normal(rngs.params(), -2, 2, (cin, 2, 2, cout), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros(cout, jnp.float32))
        self.dtype = dtype

    def weights(self) -> PatchExpansion:
        return PatchExpansion(self.kernel[...].astype(self.dtype), self.bias[...])


class OutputUpscaling(nnx.Module):
    """Image tokens at four times the resolution and an eighth of the channels, times the hypernetworks' results."""

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = PatchExpand(dim, dim // 4, **common)
        self.norm = LayerNorm(dim // 4, epsilon=1e-6, **common)
        self.conv2 = PatchExpand(dim // 4, dim // 8, **common)

    def __call__(
        self, image: Float[Array, "b p n c"], weights: Float[Array, "b p m c8"]
    ) -> Float[Array, "b p m h4 w4"]:
        assert self.norm.scale is not None
        assert self.norm.bias is not None
        norm = Norm(self.norm.scale[...], self.norm.bias[...], self.norm.epsilon)
        return masks_of(image, weights, self.conv1.weights(), norm, self.conv2.weights())


class MaskDecoder(nnx.Module):
    """Image embedding and prompt tokens to mask logits and predicted IoUs."""

    def __init__(self, config: MaskDecoderConfig, *, dtype: jnp.dtype, rngs: Keys):
        dim, count = config.embed_dim, config.num_mask_tokens
        normal = nnx.initializers.normal(1.0)
        self.iou_token = nnx.Param(normal(rngs.params(), (1, dim), jnp.float32))
        self.mask_tokens = nnx.Param(normal(rngs.params(), (count, dim), jnp.float32))
        self.transformer = TwoWayTransformer(config, dtype=dtype, rngs=rngs)
        self.output_upscaling = OutputUpscaling(dim, dtype=dtype, rngs=rngs)
        widths = (dim, dim, dim, dim // 8)
        self.hypernetworks = nnx.Dict({str(i): MLP(widths, dtype=dtype, rngs=rngs) for i in range(count)})
        hidden = [config.iou_head_hidden_dim] * (config.iou_head_depth - 1)
        self.iou_head = MLP((dim, *hidden, count), dtype=jnp.float32, rngs=rngs)

    def inputs(
        self,
        image: Float[Array, "b p0 h w c"],
        image_pe: Float[Array, "h w c"],
        tokens: Float[Array, "b p t c"],
        token_valid: Bool[Array, "b p t"],
    ) -> tuple[Float[Array, "b p0 n c"], Float[Array, "1 1 n c"], Float[Array, "b p t2 c"], Bool[Array, "b p t2"]]:
        """What the transformer takes: image tokens in a row, the IoU's and the masks' tokens in front of the prompt's.

        `image` is the embedding plus the dense prompt, and has p0 = 1 when all prompts of an image share it.
        """
        b, p, _, dim = tokens.shape
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, p, *own.shape)), tokens], axis=2)
        token_valid = jnp.concatenate([jnp.ones((b, p, len(own)), bool), token_valid], axis=2)
        image = image.reshape(*image.shape[:2], -1, dim).astype(self.transformer.dtype)
        return image, image_pe.reshape(1, 1, -1, dim).astype(self.transformer.dtype), tokens, token_valid

    def __call__(
        self,
        image: Float[Array, "b p0 n c"],
        image_pe: Float[Array, "1 1 n c"],
        tokens: Float[Array, "b p t c"],
        token_valid: Bool[Array, "b p t"],
        *,
        shared: Mapping[str, Shared],
        multimask_output: bool | None,
        iou_threshold: Float[Array, ""] | None,
    ) -> tuple[tuple[Float[Array, "b p m h4 w4"], Float[Array, "b p m"]], Intermediates]:
        """Mask logits and predicted IoUs, both float32; arguments as from `inputs`, and as of `Sam.decode`.

        `shared` is what `transformer.share` made of image, positions and tokens.
        """
        tokens, image, intermediates = self.transformer(image, image_pe, tokens, token_valid, shared)
        chosen = {None: slice(None), True: slice(1, None), False: slice(1)}[multimask_output]
        numbers = range(len(self.hypernetworks))[chosen]
        weights = jnp.stack([self.hypernetworks[str(i)](tokens[:, :, 1 + i]) for i in numbers], axis=2)
        iou = self.iou_head(tokens[:, :, 0].astype(jnp.float32))[..., chosen]
        if iou_threshold is None:
            masks = self.output_upscaling(image, weights)
        else:
            masks = of_wanted(self.output_upscaling, (iou > iou_threshold).any(-1), image, weights)
        return (masks, iou), intermediates

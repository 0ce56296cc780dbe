"""SAM's mask decoder (arXiv 2304.02643, appendix A; facebookresearch/segment-anything)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from .config import MaskDecoderConfig
from .layers import MLP, Keys, LayerNorm, Stages, gelu
from .transformer import TwoWayTransformer


class PatchExpand(nnx.Module):
    """A 2x2 transposed convolution with stride 2, whose outputs stay grouped by input pixel.

    `kernel` is [cin, 2, 2, cout]. Each input pixel makes its own 2x2 outputs, so what follows per pixel
    (LayerNorm, GELU, products over channels) can work on [..., 2, 2, cout] and the pixels need putting in
    order only once, when there is one channel left of 32.
    """

    def __init__(self, cin: int, cout: int, *, dtype: jnp.dtype, rngs: Keys):
        scale = 1 / math.sqrt(cin)
        self.kernel = nnx.Param(
            scale * jax.random.truncated_normal(rngs.params(), -2, 2, (cin, 2, 2, cout), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros(cout, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch cin"]) -> Float[Array, "*batch 2 2 cout"]:
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.tensordot(x.astype(self.dtype), kernel, 1, preferred_element_type=jnp.float32)
        return (y + self.bias[...]).astype(self.dtype)


class OutputUpscaling(nnx.Module):
    """Image tokens to four times the resolution and an eighth of the channels."""

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = PatchExpand(dim, dim // 4, **common)
        self.norm = LayerNorm(dim // 4, epsilon=1e-6, **common)
        self.conv2 = PatchExpand(dim // 4, dim // 8, **common)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch 2 2 2 2 c8"]:
        return gelu(self.conv2(gelu(self.norm(self.conv1(x)))))


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

    def __call__(
        self,
        image: Float[Array, "b p0 h w c"],
        image_pe: Float[Array, "h w c"],
        tokens: Float[Array, "b p t c"],
        token_valid: Bool[Array, "b p t"],
        *,
        multimask_output: bool = True,
        stages: Stages | None = None,
    ) -> tuple[Float[Array, "b p m h4 w4"], Float[Array, "b p m"]]:
        """Mask logits and predicted IoU, both float32.

        `image` is the embedding plus the dense prompt, and has p0 = 1 when all prompts of an image share it. With
        `multimask_output` the masks are SAM's tokens 1-3, without it token 0.
        """
        b, p, _, dim = tokens.shape
        h, w = image.shape[2:4]
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, p, *own.shape)), tokens], axis=2)
        token_valid = jnp.concatenate([jnp.ones((b, p, len(own)), bool), token_valid], axis=2)

        image = image.reshape(*image.shape[:2], h * w, dim)
        image_pe = image_pe.reshape(1, 1, h * w, dim)
        tokens, image = self.transformer(image, image_pe, tokens, token_valid, stages)

        chosen = range(1, len(own) - 1) if multimask_output else range(1)
        weights = jnp.stack([self.hypernetworks[str(i)](tokens[:, :, 1 + i]) for i in chosen], axis=2)
        upscaled = self.output_upscaling(image.reshape(b, p, h, w, dim))
        masks = jnp.einsum("bphwijklc,bpmc->bpmhikwjl", upscaled, weights, preferred_element_type=jnp.float32)
        masks = masks.reshape(b, p, len(chosen), 4 * h, 4 * w)
        iou = self.iou_head(tokens[:, :, 0].astype(jnp.float32))[..., chosen.start : chosen.stop]
        return masks, iou

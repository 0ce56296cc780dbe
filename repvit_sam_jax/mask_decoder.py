"""SAM's mask decoder (arXiv 2304.02643, appendix A; facebookresearch/segment-anything)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
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
        y = jnp.matmul(x.astype(self.dtype), kernel.reshape(len(kernel), -1), preferred_element_type=jnp.float32)
        return (y.reshape(-1, kernel.shape[-1]) + self.bias[...]).astype(self.dtype)

    def packed(self, x: Float[Array, "n groups*cin"], groups: int) -> Float[Array, "n groups*4*cout"]:
        """The same for `groups` pixels side by side among the channels, whose outputs stay there."""
        kernel = self.kernel[...].astype(self.dtype).reshape(x.shape[-1] // groups, -1)
        y = jnp.matmul(x, _block_diagonal(kernel, groups), preferred_element_type=jnp.float32)
        return (y + jnp.tile(self.bias[...], 4 * groups)).astype(self.dtype)


class OutputUpscaling(nnx.Module):
    """Image tokens to four times the resolution and an eighth of the channels."""

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = PatchExpand(dim, dim // 4, **common)
        self.norm = LayerNorm(dim // 4, epsilon=1e-6, **common)
        self.conv2 = PatchExpand(dim // 4, dim // 8, **common)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch 2 2 2 2 c8"]:
        return gelu(self.conv2(gelu(self.norm(self.conv1(x)))))

    def packed(self, x: Float[Array, "n c"]) -> Float[Array, "n 2*c"]:
        """The same with the 16 pixels of an image token side by side among the channels.

        Arrays of 32 and 64 channels waste most of a TPU's 128 lanes, and changing between them and wider ones means
        moving all pixels in memory. Multiplying by the zeros of block-diagonal kernels costs less.
        """
        y = self.conv1.packed(x.astype(self.conv1.dtype), 1).astype(jnp.float32)
        width = self.conv1.kernel.shape[-1]
        means = _block_diagonal(jnp.full((width, width), 1 / width, jnp.float32), 4)
        mean = lambda x: jnp.matmul(x, means, precision=(lax.Precision.HIGHEST, lax.Precision.DEFAULT))
        y -= mean(y)
        y *= lax.rsqrt(mean(jnp.square(y)) + self.norm.epsilon)
        assert self.norm.scale is not None
        assert self.norm.bias is not None
        y = (y * jnp.tile(self.norm.scale[...], 4) + jnp.tile(self.norm.bias[...], 4)).astype(self.conv2.dtype)
        return gelu(self.conv2.packed(gelu(y), 4))


def _block_diagonal(block: Float[Array, "*batch m n"], count: int) -> Float[Array, "*batch count*m count*n"]:
    m, n = block.shape[-2:]
    wide = block[..., None, :, None, :] * jnp.eye(count, dtype=block.dtype)[:, None, :, None]
    return wide.reshape(*block.shape[:-2], count * m, count * n)


class Pending(NamedTuple):
    """Masks that are yet to be computed by `MaskDecoder.upscale`."""

    image: Float[Array, "b p n c"]
    weights: Float[Array, "b p m c8"]


def over_prompts(f: Callable[[Any], Any], arrays: Any) -> Any:
    """`f` on arrays [B, P, ...], few prompts at a time.

    On CPU it is one, whose image tokens then stay in the cache; elsewhere 64, which bounds the memory.
    """
    if jax.tree.leaves(arrays)[0].shape[1] == 1:
        return f(arrays)
    return lax.platform_dependent(
        arrays, cpu=functools.partial(_in_chunks, f, 1), default=functools.partial(_in_chunks, f, 64)
    )


def _in_chunks(f: Callable[[Any], Any], size: int, arrays: Any) -> Any:
    if jax.tree.leaves(arrays)[0].shape[1] <= size:
        return f(arrays)
    one = lambda arrays: jax.tree.map(lambda x: x[:, 0], f(jax.tree.map(lambda x: x[:, None], arrays)))
    prompts_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), arrays)
    # Without a batch size there is no vmap, under which conditionals would compute both branches.
    mapped = lax.map(one, prompts_first, batch_size=size if size > 1 else None)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), mapped)


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
        multimask_output: bool | None = True,
        stages: Stages | None = None,
    ) -> tuple[Float[Array, "b p m h4 w4"], Float[Array, "b p m"]]:
        """Mask logits and predicted IoU, both float32.

        `image` is the embedding plus the dense prompt, and has p0 = 1 when all prompts of an image share it. With
        `multimask_output` the masks are SAM's tokens 1-3, without it token 0, and with None all four: for training,
        which keeps every prompt's intermediates for its gradients, and so takes all prompts at once.
        """
        attend, prompts = self._prepare(image, image_pe, tokens, token_valid, multimask_output)

        def decode(prompts: Any) -> tuple[Array, Array, Stages]:
            record: Stages = {}
            pending, iou = attend(prompts, record)
            return self.upscale(pending), iou, {} if stages is None else record

        masks, iou, record = decode(prompts) if multimask_output is None else over_prompts(decode, prompts)
        if stages is not None:
            stages |= record
        return masks, iou

    def decode_above(
        self,
        image: Float[Array, "b p0 h w c"],
        image_pe: Float[Array, "h w c"],
        tokens: Float[Array, "b p t c"],
        token_valid: Bool[Array, "b p t"],
        iou_threshold: Float[Array, ""],
    ) -> tuple[Float[Array, "b p m h4 w4"], Float[Array, "b p m"]]:
        """What `__call__` returns for several masks; zeros where no predicted IoU exceeds the threshold."""
        attend, prompts = self._prepare(image, image_pe, tokens, token_valid, multimask_output=True)

        def decode(prompts: Any) -> tuple[Array, Array]:
            pending, iou = attend(prompts)
            return self._upscale_some(pending, (iou > iou_threshold).any(-1)), iou

        return over_prompts(decode, prompts)

    def upscale(self, pending: Pending) -> Float[Array, "b p m h4 w4"]:
        """Mask logits, float32."""
        return lax.platform_dependent(pending, cpu=self._upscale, default=self._upscale_packed)

    def _upscale_packed(self, pending: Pending) -> Float[Array, "b p m h4 w4"]:
        b, p, n, dim = pending.image.shape
        side = math.isqrt(n)
        pixels = self.output_upscaling.packed(pending.image.reshape(-1, dim)).reshape(b, p, n, -1)
        masks = jnp.matmul(pixels, _block_diagonal(pending.weights.mT, 16), preferred_element_type=jnp.float32)
        masks = masks.reshape(b, p, side, side, 2, 2, 2, 2, -1).transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)
        return masks.reshape(b, p, -1, 4 * side, 4 * side)

    def _upscale(self, pending: Pending) -> Float[Array, "b p m h4 w4"]:
        b, p, n, dim = pending.image.shape
        side = math.isqrt(n)
        pixels = self.output_upscaling(pending.image.reshape(-1, dim)).reshape(b, p, 16 * n, -1)
        masks = jnp.matmul(pixels, pending.weights.mT, preferred_element_type=jnp.float32)
        masks = masks.reshape(b, p, side, side, 2, 2, 2, 2, -1).transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)
        return masks.reshape(b, p, -1, 4 * side, 4 * side)

    def _upscale_some(self, pending: Pending, wanted: Bool[Array, "b p"]) -> Float[Array, "b p m h4 w4"]:
        """`upscale` of the wanted prompts, eight at a time; most others are zeros."""
        (b, p, n, _), m = pending.image.shape, pending.weights.shape[2]
        side = 4 * math.isqrt(n)
        zeros = jnp.zeros((b, p, m, side, side), jnp.float32)
        if p == 1:
            return lax.cond(wanted.any(), lambda: self.upscale(pending), lambda: zeros)
        size, images = min(p, 8), jnp.arange(b)[:, None]
        order = jnp.argsort(~wanted, axis=1, stable=True)
        order = jnp.pad(order, ((0, 0), (0, -p % size)), mode="edge")

        def some(i: Array, masks: Array) -> Array:
            numbers = lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
            chosen = jax.tree.map(lambda array: array[images, numbers], pending)
            return masks.at[images, numbers].set(self.upscale(chosen))

        return lax.fori_loop(0, (wanted.sum(1).max() + size - 1) // size, some, zeros)

    def _prepare(
        self,
        image: Array,
        image_pe: Array,
        tokens: Array,
        token_valid: Array,
        multimask_output: bool | None,
    ) -> tuple[Callable[..., tuple[Pending, Array]], Any]:
        """The decoder up to the masks, and the arrays with a prompt axis that it is to be mapped over."""
        b, p, _, dim = tokens.shape
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, p, *own.shape)), tokens], axis=2)
        token_valid = jnp.concatenate([jnp.ones((b, p, len(own)), bool), token_valid], axis=2)
        image = image.reshape(*image.shape[:2], -1, dim).astype(self.transformer.dtype)
        image_pe = image_pe.reshape(1, 1, -1, dim).astype(self.transformer.dtype)
        chosen = range(1 if multimask_output else 0, 1 if multimask_output is False else len(own) - 1)
        shared = image if image.shape[1] == 1 else None
        projections = self.transformer.share(shared, image_pe, p * tokens.shape[2])

        def attend(prompts: Any, record: Stages | None = None) -> tuple[Pending, Array]:
            tokens, token_valid, own_image = prompts
            image = own_image if shared is None else shared
            tokens, image = self.transformer(image, image_pe, tokens, token_valid, projections, record)
            weights = jnp.stack([self.hypernetworks[str(i)](tokens[:, :, 1 + i]) for i in chosen], axis=2)
            iou = self.iou_head(tokens[:, :, 0].astype(jnp.float32))[..., chosen.start : chosen.stop]
            return Pending(image, weights), iou

        return attend, (tokens, token_valid, None if shared is not None else image)

"""Prompts and SAM's prompt encoder (arXiv 2304.02643, appendix A; facebookresearch/segment-anything)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..config import MaskDecoderConfig
from ..ops.activations import gelu
from .layers import Keys, LayerNorm, Linear

AnyArray = Array | np.ndarray

NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3
"""Point labels. The corner labels are those of SAM's ONNX export; they say what `boxes` says, prompt by prompt."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """P prompts for each of B images. A pytree; coordinates are pixels of the resized, padded S x S image.

    Attributes:
      point_coords: float [B, P, N, 2], (x, y).
      point_labels: int [B, P, N]: 1 foreground, 0 background, -1 SAM's not-a-point, 2 and 3 a box's top-left and
        bottom-right corner. Under `jit` nobody can look at them, so other values are not detected.
      point_valid: bool [B, P, N]; False is padding that changes nothing, whatever its coordinates and label.
      boxes: float [B, P, 4], XYXY, or None. The same as two more points with labels 2 and 3.
      masks: float [B, P, S/4, S/4], logits of an earlier prediction, or None.

    As in SAM, a prompt that has points but no box gets one not-a-point token appended.
    """

    point_coords: Float[AnyArray, "b p n 2"]
    point_labels: Int[AnyArray, "b p n"]
    point_valid: Bool[AnyArray, "b p n"]
    boxes: Float[AnyArray, "b p 4"] | None = None
    masks: Float[AnyArray, "b p h w"] | None = None


class RandomPositionEncoding(nnx.Module):
    """Fourier features of coordinates in [0, 1] (arXiv 2006.10739). Float32 always: bfloat16 is 2% off."""

    def __init__(self, features: int, *, rngs: Keys):
        self.gaussian_matrix = nnx.Param(jax.random.normal(rngs.params(), (2, features), jnp.float32))

    def __call__(self, coords: Float[Array, "*batch 2"]) -> Float[Array, "*batch c"]:
        # A buffer in PyTorch: no gradient reaches it.
        matrix = lax.stop_gradient(self.gaussian_matrix[...])
        scaled = 2 * jnp.pi * jnp.matmul(2 * coords - 1, matrix, precision=lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], axis=-1)

    def grid(self, size: int) -> Float[Array, "size size c"]:
        """The encoding of the centres of a size x size grid."""
        centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        y, x = jnp.meshgrid(centres, centres, indexing="ij")
        return self(jnp.stack([x, y], axis=-1))


class PatchLinear(nnx.Module):
    """A 2x2 convolution with stride 2. `kernel` is [2, 2, cin, cout]."""

    def __init__(self, cin: int, cout: int, *, dtype: jnp.dtype, rngs: Keys):
        scale = 1 / math.sqrt(4 * cin)
        self.kernel = nnx.Param(
            scale * jax.random.truncated_normal(rngs.params(), -2, 2, (2, 2, cin, cout), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros(cout, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch h w cin"]) -> Float[Array, "*batch h2 w2 cout"]:
        *batch, h, w, c = x.shape
        patches = x.reshape(*batch, h // 2, 2, w // 2, 2, c).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.einsum("...hiwjc,ijcd->...hwd", patches, kernel, preferred_element_type=jnp.float32)
        return (y + self.bias[...]).astype(self.dtype)


class MaskDownscaling(nnx.Module):
    """Mask logits, S/4, to the resolution and width of the image embedding."""

    def __init__(self, hidden: int, cout: int, *, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = PatchLinear(1, hidden // 4, **common)
        self.norm1 = LayerNorm(hidden // 4, epsilon=1e-6, **common)
        self.conv2 = PatchLinear(hidden // 4, hidden, **common)
        self.norm2 = LayerNorm(hidden, epsilon=1e-6, **common)
        self.conv3 = Linear(hidden, cout, **common)

    def __call__(self, masks: Float[Array, "*batch h w"]) -> Float[Array, "*batch h4 w4 c"]:
        x = gelu(self.norm1(self.conv1(masks[..., None])))
        return self.conv3(gelu(self.norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
    """Prompts to sparse tokens and a dense map. Tokens are float32: there are few of them and they carry positions."""

    def __init__(self, config: MaskDecoderConfig, *, dtype: jnp.dtype, rngs: Keys):
        dim = config.embed_dim
        normal = nnx.initializers.normal(1.0)
        self.position = RandomPositionEncoding(dim // 2, rngs=rngs)
        self.point_embeddings = nnx.Dict(
            {str(i): nnx.Param(normal(rngs.params(), (dim,), jnp.float32)) for i in range(4)}
        )
        self.not_a_point = nnx.Param(normal(rngs.params(), (dim,), jnp.float32))
        self.no_mask = nnx.Param(normal(rngs.params(), (dim,), jnp.float32))
        self.mask_downscaling = MaskDownscaling(config.mask_in_channels, dim, dtype=dtype, rngs=rngs)

    def sparse(self, prompts: Prompts, image_size: int) -> tuple[Float[Array, "b p t c"], Bool[Array, "b p t"]]:
        """Tokens of the points, of the box corners or otherwise the not-a-point token, and which of them count."""
        coords, labels, valid = self._points(prompts)
        placed = (valid & (labels != NOT_A_POINT))[..., None]
        position = jnp.where(placed, self.position(coords / image_size), 0.0)
        kinds = jnp.stack([self.not_a_point[...], *(self.point_embeddings[str(i)][...] for i in range(4))])
        return position + kinds[labels + 1], valid

    def _points(self, prompts: Prompts) -> tuple[Float[Array, "b p t 2"], Int[Array, "b p t"], Bool[Array, "b p t"]]:
        """Coordinates from the corner of the frame, labels, and which count: points, then corners or not-a-point."""
        coords = jnp.asarray(prompts.point_coords, jnp.float32)
        labels, valid = jnp.asarray(prompts.point_labels, jnp.int32), jnp.asarray(prompts.point_valid)
        b, p = coords.shape[:2]
        if prompts.boxes is not None:
            extra_coords = jnp.asarray(prompts.boxes, jnp.float32).reshape(b, p, 2, 2)
            extra_labels = jnp.broadcast_to(jnp.array([TOP_LEFT, BOTTOM_RIGHT], labels.dtype), (b, p, 2))
            extra_valid = jnp.ones((b, p, 2), bool)
        else:
            has_box = (valid & (labels >= TOP_LEFT)).any(-1, keepdims=True)
            extra_coords = jnp.zeros((b, p, 1, 2), coords.dtype)
            extra_labels = jnp.full((b, p, 1), NOT_A_POINT, labels.dtype)
            extra_valid = valid.any(-1, keepdims=True) & ~has_box
        coords = jnp.concatenate([coords, extra_coords], axis=2)
        labels = jnp.concatenate([labels, extra_labels], axis=2)
        valid = jnp.concatenate([valid, extra_valid], axis=2)

        # Coordinates of tokens without a place may be anything, NaN included; keep them out of the arithmetic.
        placed = (valid & (labels != NOT_A_POINT))[..., None]
        return jnp.where(placed, coords + 0.5, 0.0), labels, valid

    def dense(self, masks: Float[Array, "b p h w"] | None) -> Float[Array, "b p h4 w4 c"]:
        """The map that is added to the image embedding; [1, 1, 1, 1, c] without mask prompts."""
        if masks is None:
            return self.no_mask[...].reshape(1, 1, 1, 1, -1)
        return self.mask_downscaling(masks)

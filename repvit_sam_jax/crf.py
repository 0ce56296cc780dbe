"""A conditional random field that makes masks follow the edges of an image, as a layer.

Mean-field inference as CRF-RNN unrolls it (arXiv 1502.03240), with neighbours in small windows as in ConvCRF
(arXiv 1805.04777), and by what features they are compared is learnt. Windows that are wide first and then narrow are
those of the edge-avoiding a-trous wavelet transform (Dammertz et al., 2010).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from .layers import Keys, Linear

DILATIONS = (2, 2, 1, 1)
"""Of the window of 3 x 3 pixels in each step."""
FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
"""(rows, columns) to a neighbour, one of each two opposite ones."""
NEIGHBOURS = (*FORWARD, *((-rows, -columns) for rows, columns in FORWARD))

Affinities = dict[int, list[Float[Array, "b 1 1 h w"]]]
"""By dilation, how much each neighbour of a pixel counts."""


class PixelFeatures(nnx.Module):
    """What pixels are compared by: colours, and features of the same size, [S/4, S/4]."""

    def __init__(self, cin: int, cout: int, *, rngs: Keys):
        self.linear = Linear(3 + cin, cout, dtype=jnp.float32, rngs=rngs)
        # It starts with colours: 20 levels of 255 apart is a distance of 1.
        colours = 2.9 * jnp.eye(3, cout)
        self.linear.kernel = nnx.Param(jnp.concatenate([colours, 0.1 * self.linear.kernel[...][3:]]))

    def __call__(
        self, images: Float[Array, "b h w 3"], features: Float[Array, "b h4 w4 c"]
    ) -> Float[Array, "b h16 w16 d"]:
        """In float32, the 4 x 4 pixels of each position side by side, as PyTorch's `pixel_unshuffle` has them."""
        b, h, w, _ = features.shape
        colours = images.astype(jnp.float32).reshape(b, h, 4, w, 4, 3).mean((2, 4))
        y = self.linear(jnp.concatenate([colours, features.astype(jnp.float32)], axis=-1))
        return y.reshape(b, h // 4, 4, w // 4, 4, -1).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 4, w // 4, -1)


class MeanField(nnx.Module):
    """Logits, each drawn towards those of its neighbours that look like it."""

    def __init__(self) -> None:
        self.unary = nnx.Param(jnp.asarray(0.25))
        self.pairwise = nnx.Param(jnp.asarray(5.0))
        self.slope = nnx.Param(jnp.asarray(0.25))

    def __call__(
        self,
        masks: Float[Array, "b p m h w"],
        picture: Float[Array, "b p m h w"] | None,
        affinity: Affinities,
    ) -> Float[Array, "b p m h w"]:
        """Steps of x = unary * masks + picture + pairwise * (mean over neighbours of tanh(slope * x), by affinity).

        Up to scale, tanh of a logit is the mean-field marginal of a pixel that is in (1) or out (-1).
        """
        fixed = self.unary[...] * masks if picture is None else self.unary[...] * masks + picture
        h, w = masks.shape[-2:]
        x = fixed
        for dilation in DILATIONS:
            spins = jnp.tanh(self.slope[...] * x)
            padded = jnp.pad(spins, [(0, 0)] * 3 + [(dilation, dilation)] * 2)
            neighbours = sum(
                weight * padded[..., dilation * (1 + i) :, dilation * (1 + j) :][..., :h, :w]
                for (i, j), weight in zip(NEIGHBOURS, affinity[dilation], strict=True)
            )
            # Else XLA computes a step again for each neighbour that the next one looks at.
            x = lax.optimization_barrier(fixed + self.pairwise[...] * neighbours)
        return x


def affinities(packed: Float[Array, "b h16 w16 d"]) -> Affinities:
    """By dilation, how much each of its eight neighbours counts for a pixel: exp(-squared distance), their sum 1.

    Args:
      packed: from `PixelFeatures`.
    """
    b, h, w, d = packed.shape
    features = packed.astype(jnp.float32).reshape(b, h, w, d // 16, 4, 4).transpose(0, 3, 1, 4, 2, 5)
    features = features.reshape(b, d // 16, 4 * h, 4 * w)
    found = {}
    for dilation in sorted(set(DILATIONS)):
        near = {}
        for rows, columns in FORWARD:
            i, j = dilation * rows, dilation * columns
            left, right = max(-j, 0), max(j, 0)
            one = features[:, :, : 4 * h - i, left : 4 * w - right]
            other = features[:, :, i:, right : 4 * w - left]
            weight = jnp.exp(-jnp.square(one - other).sum(1))
            near[rows, columns] = jnp.pad(weight, ((0, 0), (0, i), (left, right)))
            near[-rows, -columns] = jnp.pad(weight, ((0, 0), (i, 0), (right, left)))
        total = sum(near.values()) + 1e-3
        found[dilation] = [(near[at] / total)[:, None, None] for at in NEIGHBOURS]
    return found

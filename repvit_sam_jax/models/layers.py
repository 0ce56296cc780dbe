"""The layers that several modules share. Activations are channels-last; kernels end in the output channel.

Every layer takes a compute `dtype`. Matrix products accumulate in float32 whatever it is; normalisation, GELU and
squeeze-excite are computed in float32, because half-precision statistics are what breaks SAM decoders.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from ..ops.convolutions import conv3x3, depthwise_conv3x3, product

Intermediates = dict[str, Array]
"""Activations by name, in the order in which they are computed. What nobody uses is not computed under `jit`."""

PRODUCT, STATISTICS = "product", "statistics"
"""Names, for rematerialisation, of what convolutions and linear layers give, and of a batch's statistics."""

ConvKind = Literal["dense3x3", "depthwise3x3", "pointwise"]


class Keys:
    """A source of random keys, called as `nnx.Rngs` is.

    It counts in Python. `nnx.Rngs` counts in a traced variable, which makes tracing the construction of a model of
    five hundred arrays take seconds.
    """

    def __init__(self, key: PRNGKeyArray):
        self._key, self._count = key, 0

    def params(self) -> PRNGKeyArray:
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


def scaled_normal(key: PRNGKeyArray, shape: Sequence[int], variance: float) -> Float[Array, "*shape"]:
    """Normal values cut at two deviations, of a given variance after it.

    They are those of `nnx.initializers.variance_scaling`, but the draw is compiled for a few sizes alone, of which the
    first values are taken: to compile it for each shape of a model takes most of a minute on CPU.
    """
    count, size = math.prod(shape), 4096
    while size < count:
        size *= 4
    deviation = np.sqrt(np.float32(variance)) / np.float32(0.87962566103423978)  # the second is the cut distribution's
    drawn = jax.random.truncated_normal(key, -2.0, 2.0, (size,), jnp.float32) * deviation
    return drawn[:count].reshape(shape)


class BatchCount(nnx.BatchStat):
    """PyTorch's `num_batches_tracked`. It feeds no arithmetic and exists so that checkpoints survive a round trip."""


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis. `kernel` is [din, dout].

    It differs from `nnx.Linear` in half precision only: the product and the bias stay in float32 until the end.
    """

    def __init__(self, din: int, dout: int, *, dtype: jnp.dtype, rngs: Keys):
        self.kernel = nnx.Param(scaled_normal(rngs.params(), (din, dout), 1 / din))
        self.bias = nnx.Param(jnp.zeros(dout, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch din"]) -> Float[Array, "*batch dout"]:
        dtype = self.dtype
        y = product(x.astype(dtype), self.kernel[...].astype(dtype))
        return checkpoint_name((y + self.bias[...]).astype(dtype), PRODUCT)


class Conv(nnx.Module):
    """A convolution of one of three kinds, with padding that keeps the size at stride 1.

    `kernel` is [3, 3, cin, cout] for `dense3x3`, [3, 3, c] for `depthwise3x3` and [cin, cout] for `pointwise`.
    """

    def __init__(
        self, kind: ConvKind, cin: int, cout: int, *, stride: int = 1, use_bias: bool, dtype: jnp.dtype, rngs: Keys
    ):
        shapes = {"dense3x3": (3, 3, cin, cout), "depthwise3x3": (3, 3, 1, cin), "pointwise": (cin, cout)}
        shape = shapes[kind]
        kernel = scaled_normal(rngs.params(), shape, 2 / (math.prod(shape[:-2]) * shape[-1]))
        self.kernel = nnx.Param(kernel[:, :, 0] if kind == "depthwise3x3" else kernel)
        self.bias = nnx.Param(jnp.zeros(cout, jnp.float32)) if use_bias else nnx.data(None)
        self.kind, self.stride, self.dtype = kind, stride, dtype

    def __call__(self, x: Float[Array, "b h w cin"]) -> Float[Array, "b h2 w2 cout"]:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.kind == "pointwise":
            y = product(x, kernel)
        elif self.kind == "dense3x3":
            y = conv3x3(x, kernel, self.stride)
        else:
            y = depthwise_conv3x3(x, kernel, self.stride)
        if self.bias is not None:
            y = y.astype(jnp.float32) + self.bias[...]
        return checkpoint_name(y.astype(self.dtype), PRODUCT)


class FusedConv(Conv):
    """The deploy form of `ConvBN`: a convolution with bias, called in the same way."""

    def __call__(self, x: Float[Array, "b h w cin"], train: bool = False) -> Float[Array, "b h2 w2 cout"]:
        if train:
            raise ValueError("the deploy form can't be trained: its BatchNorms are folded")
        return super().__call__(x)

    def weights(self) -> tuple[Float[Array, "*shape"], Float[Array, "cout"]]:
        """Kernel in the compute dtype, and bias, for functions that convolve in another way."""
        assert self.bias is not None
        return self.kernel[...].astype(self.dtype), self.bias[...]


def _channel_mean(x: Float[Array, "*batch c"]) -> Float[Array, "c"]:
    """The mean over all axes but the last, one axis after the other.

    A single float32 sum over the 65,536 pixels of an early layer loses digits, and by the same amount for all pixels.
    """
    for _ in range(x.ndim - 1):
        x = x.mean(-2)
    return x


class BatchNorm(nnx.Module):
    """Batch normalisation with PyTorch's bookkeeping, over all axes but the last.

    `nnx.BatchNorm` keeps a biased running variance and no counter; PyTorch's running variance is unbiased, so a
    model trained here and evaluated there (or the other way round) needs this one. Under `jit` with a sharded batch
    the statistics are those of the global batch.
    """

    epsilon = 1e-5
    momentum = 0.1  # PyTorch's: the weight of the new value

    def __init__(self, channels: int, *, scale_init: float = 1.0, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.full(channels, scale_init, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.count = BatchCount(jnp.zeros((), jnp.int32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch c"], train: bool = False) -> Float[Array, "*batch c"]:
        wide = x.astype(jnp.float32)
        if train:
            mean = checkpoint_name(_channel_mean(wide), STATISTICS)
            var = checkpoint_name(_channel_mean(jnp.square(wide - mean)), STATISTICS)
            n = x.size // x.shape[-1]
            if n < 2:
                raise ValueError(f"training-mode BatchNorm needs more than one value per channel, got shape {x.shape}")
            keep, new = 1 - self.momentum, self.momentum
            self.mean.set_value(keep * self.mean[...] + new * lax.stop_gradient(mean))
            self.var.set_value(keep * self.var[...] + new * lax.stop_gradient(var) * (n / (n - 1)))
            self.count.set_value(self.count[...] + 1)
        else:
            mean, var = self.mean[...], self.var[...]
        y = (wide - mean) * (self.scale[...] / jnp.sqrt(var + self.epsilon)) + self.bias[...]
        return y.astype(self.dtype)


class ConvBN(nnx.Module):
    """A convolution without bias, then BatchNorm."""

    def __init__(
        self,
        kind: ConvKind,
        cin: int,
        cout: int,
        *,
        stride: int = 1,
        scale_init: float = 1.0,
        dtype: jnp.dtype,
        rngs: Keys,
    ):
        self.conv = Conv(kind, cin, cout, stride=stride, use_bias=False, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(cout, scale_init=scale_init, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w cin"], train: bool = False) -> Float[Array, "b h2 w2 cout"]:
        return self.bn(self.conv(x), train)


class BNLinear(nnx.Module):
    """BatchNorm, then a linear layer: the head of LeViT and of RepViT."""

    def __init__(self, din: int, dout: int, *, dtype: jnp.dtype, rngs: Keys):
        self.bn = BatchNorm(din, dtype=dtype)
        self.linear = Linear(din, dout, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch din"]) -> Float[Array, "*batch dout"]:
        return self.linear(self.bn(x))


def conv_bn(
    kind: ConvKind,
    cin: int,
    cout: int,
    *,
    stride: int = 1,
    scale_init: float = 1.0,
    deploy: bool,
    dtype: jnp.dtype,
    rngs: Keys,
) -> ConvBN | FusedConv:
    """A `ConvBN`, or in deploy form the one convolution that `reparam` folds it into."""
    if deploy:
        return FusedConv(kind, cin, cout, stride=stride, use_bias=True, dtype=dtype, rngs=rngs)
    return ConvBN(kind, cin, cout, stride=stride, scale_init=scale_init, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis, in float32 with the two-pass variance, returned in the compute dtype.

    SAM's LayerNorm2d is this with epsilon 1e-6; its decoder's LayerNorm has PyTorch's default, 1e-5.
    """

    def __init__(self, channels: int, *, epsilon: float, dtype: jnp.dtype, rngs: Keys):
        super().__init__(channels, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)  # type: ignore[arg-type]
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:  # type: ignore[override]
        return super().__call__(x).astype(self.out_dtype)


def squeeze_width(channels: int) -> int:
    """Hidden width of RepViT's squeeze-excite: a quarter, rounded to the nearest multiple of 8, at least 8."""
    return max(8, (channels // 4 + 4) // 8 * 8)


class SqueezeExcite(nnx.Module):
    """Channel gates from the spatial mean (arXiv 1709.01507), computed in float32."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: Keys):
        hidden = squeeze_width(channels)
        self.fc1 = Linear(channels, hidden, dtype=jnp.float32, rngs=rngs)
        self.fc2 = Linear(hidden, channels, dtype=jnp.float32, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
        """The gates, for whoever uses `x` next to multiply by."""
        mean = jax.vmap(_channel_mean)(x.astype(jnp.float32))
        return jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(mean)))).astype(self.dtype)


class MLP(nnx.Module):
    """Linear layers with ReLU between them. `widths` are the input's, the hidden and the output's."""

    def __init__(self, widths: Sequence[int], *, dtype: jnp.dtype, rngs: Keys):
        self.layers = nnx.Dict(
            {str(i): Linear(a, b, dtype=dtype, rngs=rngs) for i, (a, b) in enumerate(itertools.pairwise(widths))}
        )

    def __call__(self, x: Float[Array, "*batch din"]) -> Float[Array, "*batch dout"]:
        for i in range(len(self.layers)):
            x = self.layers[str(i)](x if i == 0 else jax.nn.relu(x))
        return x


class Neck(nnx.Module):
    """What SAM's image encoders end with: 1x1 convolution, LayerNorm, 3x3 convolution, LayerNorm, to float32."""

    def __init__(self, cin: int, cout: int, *, dtype: jnp.dtype, rngs: Keys):
        self.conv1 = Conv("pointwise", cin, cout, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(cout, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.conv2 = Conv("dense3x3", cout, cout, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(cout, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w cin"]) -> tuple[Float[Array, "b h w cout"], Intermediates]:
        middle = self.norm1(self.conv1(x))
        out = self.norm2(self.conv2(middle))
        return out, {"neck": middle, "embedding": out}

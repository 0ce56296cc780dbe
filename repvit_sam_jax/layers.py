"""The layers that several modules share. Activations are channels-last; kernels end in the output channel.

Every layer takes a compute `dtype`. Matrix products accumulate in float32 whatever it is; normalisation, GELU and
squeeze-excite are computed in float32, because half-precision statistics are what breaks SAM decoders.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

Stages = dict[str, Array]
"""Named intermediate activations, in the order in which they are computed."""

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


_CUT = 4.0
_SLOPE = (
    0.17594291269779205, -0.08434347063302994, 0.0561894029378891, -0.0367114432156086, 0.02108503133058548,
    -0.012560303322970867, 0.008699791505932808, -0.0033151470124721527,
)  # fmt: skip
"""(cdf(x) - 1/2) / x of the normal distribution as a polynomial in 2 (x / 4)^2 - 1, lowest order first, fitted to the
smallest largest error of the cdf up to |x| = 4, 2e-5; beyond, where it is kept constant, another 3e-5 are left."""


@jax.custom_jvp
def _normal_cdf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The standard normal distribution to 5e-5, at half the cost of `lax.erf` on CPU."""
    inside = jnp.clip(x, -_CUT, _CUT)
    variable, slope = inside * inside * (2 / _CUT**2) - 1, jnp.zeros_like(x)
    for coefficient in reversed(_SLOPE):
        slope = slope * variable + coefficient
    return 0.5 + inside * slope


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return _normal_cdf(x), tangent * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, which SAM and RepViT use; `jax.nn.gelu` defaults to the tanh approximation.

    It is computed in float32; in half precision by a polynomial, whose error is a small part of the result's rounding.
    """
    wide = x.astype(jnp.float32)
    if jnp.finfo(x.dtype).bits < 32:
        return (wide * _normal_cdf(wide)).astype(x.dtype)
    return 0.5 * wide * (1.0 + lax.erf(wide * 0.7071067811865476))


def product(x: Float[Array, "*batch din"], kernel: Float[Array, "din dout"]) -> Float[Array, "*batch dout"]:
    """`x @ kernel`, in float32 at least.

    On CPU it is written as the product of two matrices: XLA:CPU takes up to five times as long for the kernel's
    gradient if that is a sum over several axes.
    """
    multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def of_matrices(x: Array, kernel: Array) -> Array:
        return multiply(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])

    return lax.platform_dependent(x, kernel, cpu=of_matrices, default=multiply)


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


def _depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _depthwise_shifts(x: Array, kernel: Array, stride: int) -> Array:
    """Nine shifted multiply-adds, in float32. XLA:CPU's grouped convolution is some fifty times slower than this."""
    h, w = (-(-n // stride) for n in x.shape[1:3])
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = kernel.astype(jnp.float32)
    windows = [
        padded[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride] * kernel[i, j]
        for i in range(3)
        for j in range(3)
    ]
    return functools.reduce(jnp.add, windows).astype(x.dtype)


def depthwise_conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"], stride: int = 1
) -> Float[Array, "b h2 w2 c"]:
    """3x3 depthwise convolution with padding 1, in the form that is fast on the platform it is compiled for."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_depthwise_shifts, stride=stride),
        default=functools.partial(_depthwise_conv, stride=stride),
    )


def conv3x3(
    x: Float[Array, "b h w cin"], kernel: Float[Array, "3 3 cin cout"], stride: int = 1, *, pad_rows: bool = True
) -> Float[Array, "b h2 w2 cout"]:
    """Dense 3x3 convolution with padding 1; without `pad_rows` there is none above and below."""
    strides, padding = (stride, stride), ((int(pad_rows),) * 2, (1, 1))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


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


PIXEL_CHUNK = 4096
"""Pixels that `over_pixels` takes at a time, at most; 1024, 2048 and 4096 take the same time."""


def over_pixels(
    f: Callable[[Array, Array | None], Array], x: Float[Array, "b h w c"], gate: Float[Array, "b c"] | None
) -> Float[Array, "b h w c"]:
    """`f` of pixels [..., c] and the gates of their image; on CPU some pixels at a time, in the place of `x`.

    So what `f` makes stays in the cache there, and little memory is touched for the first time, for which the kernel
    would have to find pages. There are two chunks at least: they are also what keeps XLA:CPU from fusing the depthwise
    convolutions in front of and behind `f`, and from computing `x` anew for every use of it.
    """
    return lax.platform_dependent(
        x,
        gate,
        cpu=functools.partial(_in_chunks, f),
        default=lambda x, gate: f(x, None if gate is None else gate[:, None, None]),
    )


def _in_chunks(f: Callable[[Array, Array | None], Array], x: Array, gate: Array | None) -> Array:
    _, h, w, c = x.shape
    most = max(1, min(PIXEL_CHUNK, h * w // 2))
    size = next(n for n in range(most, 0, -1) if h * w % n == 0)
    chunks = x.reshape(-1, size, c)
    gates = None if gate is None else jnp.repeat(gate, h * w // size, axis=0)

    def chunk(i: Array | int, chunks: Array) -> Array:
        here = lax.dynamic_index_in_dim(chunks, i, keepdims=False)
        return f(here, None if gates is None else lax.dynamic_index_in_dim(gates, i, keepdims=False))

    if len(chunks) <= 2:  # side by side: what is not a product in one runs beside the other's products
        y = jnp.stack([chunk(i, chunks) for i in range(len(chunks))])
    else:
        update = lambda i, chunks: lax.dynamic_update_index_in_dim(chunks, chunk(i, chunks), i, 0)
        y = lax.fori_loop(0, len(chunks), update, chunks)
    return y.reshape(x.shape)


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

    def __call__(self, x: Float[Array, "b h w cin"], stages: Stages | None) -> Float[Array, "b h w cout"]:
        middle = self.norm1(self.conv1(x))
        out = self.norm2(self.conv2(middle))
        if stages is not None:
            stages["neck"], stages["embedding"] = middle, out
        return out

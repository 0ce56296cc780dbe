"""RepViT (arXiv 2307.09283), and on top of it SAM's neck, with the last stage at stride 1 (arXiv 2312.05760).

Reference: THU-MIG/RepViT, `sam/repvit_sam/modeling/repvit.py`. Deliberate difference: there the block whose input
has 320 channels gets stride 1, which is the last downsampling block only in M2.3; here the last downsampling block
gets it in every variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ..config import RepViTBlockConfig, RepViTConfig
from ..layers import (
    BatchNorm,
    ConvBN,
    FusedConv,
    Keys,
    Neck,
    SqueezeExcite,
    Stages,
    conv3x3,
    conv_bn,
    gelu,
    over_pixels,
)
from .blocks import Remat, apply_blocks, apply_run


class DepthwiseScale(nnx.Module):
    """A 1x1 depthwise convolution with bias: a scale and a shift per channel."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: Keys):
        # PyTorch's default for one input value a channel.
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (channels,), jnp.float32, -1.0, 1.0))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x * self.kernel[...].astype(self.dtype) + self.bias[...].astype(self.dtype)


class RepVGGDW(nnx.Module):
    """The training form of RepViT's depthwise convolution: `BN(ConvBN_3x3(x) + conv_1x1(x) + x)`."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: Keys):
        self.conv3x3 = ConvBN("depthwise3x3", channels, channels, dtype=dtype, rngs=rngs)
        self.conv1x1 = DepthwiseScale(channels, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(channels, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        return self.bn(self.conv3x3(x, train) + self.conv1x1(x) + x, train)


class TokenMixer(nnx.Module):
    """Spatial mixing: a depthwise convolution, squeeze-excite on some blocks, and a projection where it downsamples."""

    def __init__(self, config: RepViTBlockConfig, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        cin, cout = config.in_channels, config.out_channels
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.dw: RepVGGDW | ConvBN | FusedConv
        if config.downsample or deploy:
            self.dw = conv_bn("depthwise3x3", cin, cin, stride=config.stride, **common)
        else:
            self.dw = RepVGGDW(cin, dtype=dtype, rngs=rngs)
        self.se = SqueezeExcite(cin, dtype=dtype, rngs=rngs) if config.use_se else nnx.data(None)
        self.pw = conv_bn("pointwise", cin, cout, **common) if config.downsample else nnx.data(None)

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b c2"] | None]:
        """Features, and the gates of squeeze-excite that are still to be multiplied by, if the block has any."""
        x = self.dw(x, train)
        if self.pw is not None:
            return self.pw(x, train), None
        return x, None if self.se is None else self.se(x)


class ChannelMixer(nnx.Module):
    """`x + project(gelu(expand(x)))`, twice as wide inside."""

    def __init__(self, channels: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.expand = conv_bn("pointwise", channels, 2 * channels, **common)
        self.project = conv_bn("pointwise", 2 * channels, channels, scale_init=0.0, **common)

    def __call__(self, x: Float[Array, "*batch c"], train: bool = False) -> Float[Array, "*batch c"]:
        return x + self.project(gelu(self.expand(x, train)), train)


class RepViTBlock(nnx.Module):
    """A token mixer, then a channel mixer."""

    def __init__(self, config: RepViTBlockConfig, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        self.token_mixer = TokenMixer(config, deploy=deploy, dtype=dtype, rngs=rngs)
        self.channel_mixer = ChannelMixer(config.out_channels, deploy=deploy, dtype=dtype, rngs=rngs)
        self.deploy = deploy

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 c2"]:
        x, gate = self.token_mixer(x, train)
        if not self.deploy:  # BatchNorm wants all pixels at once
            return self.channel_mixer(x if gate is None else x * gate[:, None, None], train)
        return over_pixels(lambda x, gate: self.channel_mixer(x if gate is None else x * gate), x, gate)


STEM_ROWS = 16
"""Rows of its output that the stem makes at a time on CPU, at most; 8 to 64 take the same time."""


class Stem(nnx.Module):
    """Two stride-2 3x3 convolutions with a GELU between them."""

    def __init__(self, channels: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"stride": 2, "deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.conv1 = conv_bn("dense3x3", 3, channels // 2, **common)
        self.conv2 = conv_bn("dense3x3", channels // 2, channels, **common)
        self.deploy, self.dtype = deploy, dtype

    def __call__(self, x: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b h2 w2 c"]:
        if not self.deploy:  # BatchNorm wants all pixels at once
            return self.conv2(gelu(self.conv1(x, train)), train)
        return lax.platform_dependent(x, cpu=self._in_strips, default=self._in_blocks)

    def _in_blocks(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Pixels of a block of 4x4 side by side among the channels, and the results of the first convolution likewise.

        Arrays of 3 and 40 channels waste most of a TPU's 128 lanes.
        """
        # Slices and not a transposition, for which a TPU would rearrange all pixels three times.
        x = jnp.concatenate([x[:, i::4, j::4] for i in range(4) for j in range(4)], axis=-1)
        x = gelu(self._of_blocks(self.conv1, x, 2))
        return self._of_blocks(self.conv2, x, 1)

    def _of_blocks(
        self, conv: ConvBN | FusedConv, x: Float[Array, "b h w cin"], size: int
    ) -> Float[Array, "b h w cout"]:
        """A convolution from blocks of 2 `size` pixels a side to blocks of `size`."""
        assert isinstance(conv, FusedConv)
        assert conv.bias is not None
        kernel = _block_kernel(conv.kernel[...].astype(self.dtype), size)
        y = lax.conv_general_dilated(x, kernel, (1, 1), ((1, 0), (1, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (y.astype(jnp.float32) + jnp.tile(conv.bias[...], size**2)).astype(self.dtype)

    def _in_strips(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Some rows at a time, so that what is between the convolutions stays in the cache.

        In float32, with kernels rounded as elsewhere: half precision saves no time in these convolutions on a CPU.
        """
        kernels, biases = [], []
        for conv in (self.conv1, self.conv2):
            assert isinstance(conv, FusedConv)
            assert conv.bias is not None
            kernels.append(conv.kernel[...].astype(self.dtype).astype(jnp.float32))
            biases.append(conv.bias[...])
        b, height, width, _ = x.shape
        rows = next(n for n in range(STEM_ROWS, 0, -1) if height // 4 % n == 0)
        padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (3, 0), (0, 0), (0, 0)))

        def strip(i: Array, out: Array) -> Array:
            above = lax.dynamic_slice_in_dim(padded, 4 * rows * i, 4 * rows + 3, axis=1)
            middle = gelu(conv3x3(above, kernels[0], 2, pad_rows=False) + biases[0])
            middle = jnp.where(jnp.arange(2 * rows + 1)[:, None, None] + i > 0, middle, 0)  # padding above the image
            y = conv3x3(middle, kernels[1], 2, pad_rows=False) + biases[1]
            return lax.dynamic_update_slice_in_dim(out, y.astype(out.dtype), rows * i, axis=1)

        out = jnp.zeros((b, height // 4, width // 4, len(biases[1])), self.dtype)
        return lax.fori_loop(0, height // 4 // rows, strip, out)


def _block_kernel(kernel: Float[Array, "3 3 cin cout"], size: int) -> Float[Array, "2 2 cin2 cout2"]:
    """A 3x3 kernel of stride 2 and padding 1, from blocks of 2 `size` pixels a side to blocks of `size`.

    A block of results sees the block of pixels at the same place and those above and to the left of it.
    """
    places = [(2 * size - 1 + 2 * i, 2 * size - 2 - 2 * i) for i in range(size)]
    wide = jnp.stack([jnp.stack([jnp.pad(kernel, (i, j, (0, 0), (0, 0))) for j in places]) for i in places])
    cin, cout = kernel.shape[2:]
    split = wide.reshape(size, size, 2, 2 * size, 2, 2 * size, cin, cout)
    return split.transpose(2, 4, 3, 5, 6, 0, 1, 7).reshape(2, 2, 4 * size**2 * cin, size**2 * cout)


class RepViT(nnx.Module):
    """The trunk: stem and blocks. Its output has 1/16 of the image's side with `last_stride` 1, 1/32 with 2."""

    def __init__(self, config: RepViTConfig, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.config, self.deploy, self.dtype = config, deploy, dtype
        self.stem = Stem(config.channels[0], **common)
        self.blocks = nnx.Dict({str(b.index): RepViTBlock(b, **common) for b in config.blocks()})

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool, stages: Stages | None, remat: Remat = "none"
    ) -> Float[Array, "b h2 w2 c"]:
        """The last block's output; `stages`, if given, is filled with `stem`, `blocks.1`, `blocks.2`, ..."""
        x, _ = apply_run([[self.stem]], images.astype(self.dtype), train=train, remat=remat)
        if stages is not None:
            stages["stem"] = x
        # In deploy form the loops over pixels are enough to keep blocks apart, and stacking 90 MB of params would take
        # about 4% of the time on CPU.
        single = ([(block.index,)] for block in self.config.blocks())
        runs = single if self.deploy else _runs(self.config)
        return apply_blocks(self.blocks, runs, x, train=train, stages=stages, remat=remat)


class RepViTEncoder(RepViT):
    """Normalised image to image embedding, at 1/16 of its size."""

    def __init__(self, config: RepViTConfig, out_channels: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        super().__init__(config, deploy=deploy, dtype=dtype, rngs=rngs)
        self.neck = Neck(config.channels[-1], out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        *,
        train: bool = False,
        stages: Stages | None = None,
        remat: Remat = "none",
    ) -> Float[Array, "b h16 w16 c"]:
        """Embed images; with `train`, normalise by batch statistics and update the running ones in place.

        `stages`, if given, is filled with the activations `stem`, `blocks.1`, ..., `neck`, `embedding`.
        """
        return self.neck(self.features(images, train=train, stages=stages, remat=remat), stages)


def _runs(config: RepViTConfig) -> Iterator[list[tuple[int, ...]]]:
    """The block indices, grouped into runs of (squeeze-excite block, plain block) pairs that repeat within a stage."""
    run: list[tuple[int, ...]] = []
    blocks = list(config.blocks())
    i = 0
    while i < len(blocks):
        if blocks[i].use_se and i + 1 < len(blocks) and not blocks[i + 1].downsample:
            run.append((blocks[i].index, blocks[i + 1].index))
            i += 2
            continue
        if run:
            yield run
            run = []
        yield [(blocks[i].index,)]
        i += 1
    if run:
        yield run

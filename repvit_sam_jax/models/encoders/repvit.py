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
from jaxtyping import Array, Float

from ...config import RepViTBlockConfig, RepViTConfig
from ...ops.activations import gelu
from ...ops.chunks import over_pixels
from ...ops.stem import stem
from ..layers import BatchNorm, ConvBN, FusedConv, Intermediates, Keys, Neck, SqueezeExcite, conv_bn
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


class Stem(nnx.Module):
    """Two stride-2 3x3 convolutions with a GELU between them."""

    def __init__(self, channels: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"stride": 2, "deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.conv1 = conv_bn("dense3x3", 3, channels // 2, **common)
        self.conv2 = conv_bn("dense3x3", channels // 2, channels, **common)

    def __call__(self, x: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b h2 w2 c"]:
        if not (isinstance(self.conv1, FusedConv) and isinstance(self.conv2, FusedConv)):
            return self.conv2(gelu(self.conv1(x, train)), train)  # BatchNorm wants all pixels at once
        (kernel1, bias1), (kernel2, bias2) = self.conv1.weights(), self.conv2.weights()
        return stem(x, kernel1, kernel2, bias1, bias2)


class RepViT(nnx.Module):
    """The trunk: stem and blocks. Its output has 1/16 of the image's side with `last_stride` 1, 1/32 with 2."""

    def __init__(self, config: RepViTConfig, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        common: dict[str, Any] = {"deploy": deploy, "dtype": dtype, "rngs": rngs}
        self.config, self.deploy, self.dtype = config, deploy, dtype
        self.stem = Stem(config.channels[0], **common)
        self.blocks = nnx.Dict({str(b.index): RepViTBlock(b, **common) for b in config.blocks()})

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool, remat: Remat = "none"
    ) -> tuple[Float[Array, "b h2 w2 c"], Intermediates]:
        """The last block's output. Intermediates are `stem`, `blocks.1`, `blocks.2`, ..."""
        first, _ = apply_run([[self.stem]], images.astype(self.dtype), train=train, remat=remat)
        # In deploy form the loops over pixels are enough to keep blocks apart, and stacking 90 MB of params would take
        # about 4% of the time on CPU.
        single = ([(block.index,)] for block in self.config.blocks())
        runs = single if self.deploy else _runs(self.config)
        last, intermediates = apply_blocks(self.blocks, runs, first, train=train, remat=remat)
        return last, {"stem": first, **intermediates}


class RepViTEncoder(RepViT):
    """Normalised image to image embedding, at 1/16 of its size."""

    def __init__(self, config: RepViTConfig, out_channels: int, *, deploy: bool, dtype: jnp.dtype, rngs: Keys):
        super().__init__(config, deploy=deploy, dtype=dtype, rngs=rngs)
        self.neck = Neck(config.channels[-1], out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False, remat: Remat = "none"
    ) -> tuple[Float[Array, "b h16 w16 c"], Intermediates]:
        """Embed images; with `train`, normalise by batch statistics and update the running ones in place.

        Intermediates are `stem`, `blocks.1`, ..., `neck`, `embedding`.
        """
        x, intermediates = self.features(images, train=train, remat=remat)
        embedding, ends = self.neck(x)
        return embedding, intermediates | ends


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

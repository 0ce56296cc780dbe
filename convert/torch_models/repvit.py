"""RepViT as SAM's image encoder, in PyTorch. The attribute names follow the keys of the published state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repvit_sam_jax.config import RepViTBlockConfig, RepViTConfig
from repvit_sam_jax.layers import squeeze_width

from .common import neck


def _folded(conv: nn.Conv2d, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> nn.Conv2d:
    """A convolution with `conv`'s geometry and these float64 weights, rounded to float32."""
    out, _, height, width = weight.shape
    folded = nn.Conv2d(conv.in_channels, out, (height, width), conv.stride, padding, groups=conv.groups)  # type: ignore[arg-type]
    folded.load_state_dict({"weight": weight, "bias": bias})
    return folded.to(conv.weight.device).train(conv.training)


def _scale_and_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert bn.running_var is not None
    assert bn.running_mean is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


class ConvBN(nn.Sequential):
    """`c`, a convolution without bias, and `bn`."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, scale_init: float = 1.0):
        super().__init__()
        self.add_module("c", nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(cout))
        nn.init.constant_(self.bn.weight, scale_init)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        scale, shift = _scale_and_shift(self.bn)
        return _folded(self.c, self.c.weight.double() * scale[:, None, None, None], shift, self.c.padding)  # type: ignore[arg-type]


class RepVGGDW(nn.Module):
    """A 3x3 depthwise ConvBN, a 1x1 depthwise convolution and the identity, summed and normalised."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        inner_scale, inner_shift = _scale_and_shift(self.conv.bn)
        weight = self.conv.c.weight.double() * inner_scale[:, None, None, None]
        weight[:, :, 1, 1] += self.conv1.weight.double()[:, :, 0, 0] + 1.0
        assert self.conv1.bias is not None
        bias = inner_shift + self.conv1.bias.double()
        scale, shift = _scale_and_shift(self.bn)
        return _folded(self.conv.c, weight * scale[:, None, None, None], bias * scale + shift, (1, 1))


class SqueezeExcite(nn.Module):
    """Channel gates; `fc1` and `fc2` are 1x1 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = squeeze_width(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Residual(nn.Module):
    """`x + m(x)`."""

    def __init__(self, m: nn.Module):
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class RepViTBlock(nn.Module):
    """Token mixer, then channel mixer."""

    def __init__(self, config: RepViTBlockConfig):
        super().__init__()
        cin, cout = config.in_channels, config.out_channels
        se = SqueezeExcite(cin) if config.use_se else nn.Identity()
        if config.downsample:
            depthwise = ConvBN(cin, cin, 3, config.stride, groups=cin)
            self.token_mixer = nn.Sequential(depthwise, se, ConvBN(cin, cout, 1))
        else:
            self.token_mixer = nn.Sequential(RepVGGDW(cin), se)
        mixer = nn.Sequential(ConvBN(cout, 2 * cout, 1), nn.GELU(), ConvBN(2 * cout, cout, 1, scale_init=0.0))
        self.channel_mixer = Residual(mixer)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.token_mixer(x))


class RepViTEncoder(nn.Module):
    """Images [B, 3, S, S] to embeddings [B, 256, S/16, S/16]."""

    def __init__(self, config: RepViTConfig):
        super().__init__()
        width = config.channels[0]
        stem = nn.Sequential(ConvBN(3, width // 2, 3, 2), nn.GELU(), ConvBN(width // 2, width, 3, 2))
        self.features = nn.ModuleList([stem, *(RepViTBlock(block) for block in config.blocks())])
        self.neck = neck(config.channels[-1], config.neck_channels)

    def stages(self) -> dict[str, tuple[str, bool]]:
        """Name of a stage in JAX -> the submodule that computes it, and whether its output is channels first."""
        blocks = {f"blocks.{i}": (f"features.{i}", True) for i in range(1, len(self.features))}
        return {"stem": ("features.0", True), **blocks, "neck": ("neck.1", True), "embedding": ("neck.3", True)}

    def forward(self, x: Tensor) -> Tensor:
        for feature in self.features:
            x = feature(x)
        return self.neck(x)


def fuse(module: nn.Module) -> nn.Module:
    """Replace every ConvBN and RepVGGDW below `module` by its one convolution, in place; returns `module`."""
    for name, child in module.named_children():
        if isinstance(child, ConvBN | RepVGGDW):
            setattr(module, name, child.fuse())
        else:
            fuse(child)
    return module

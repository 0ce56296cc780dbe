"""Layers that the twins share."""

from __future__ import annotations

import itertools
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Fusable(Protocol):
    """What becomes one layer in deploy form."""

    def fuse(self) -> nn.Module:
        """The one layer, computed in float64."""
        ...


def fuse(module: nn.Module) -> nn.Module:
    """Replace every submodule that has a `fuse` by what it gives, in place; returns `module`."""
    for name, child in module.named_children():
        if isinstance(child, Fusable):
            setattr(module, name, child.fuse())
        else:
            fuse(child)
    return module


def with_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> nn.Conv2d:
    """A convolution with `conv`'s geometry and these float64 weights, rounded to float32."""
    out, _, height, width = weight.shape
    made = nn.Conv2d(conv.in_channels, out, (height, width), conv.stride, padding, groups=conv.groups)  # type: ignore[arg-type]
    made.load_state_dict({"weight": weight, "bias": bias})
    return made.to(conv.weight.device).train(conv.training)


def scale_and_shift(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What BatchNorm multiplies by and adds in evaluation, float64."""
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
        scale, shift = scale_and_shift(self.bn)
        return with_weights(self.c, self.c.weight.double() * scale[:, None, None, None], shift, self.c.padding)  # type: ignore[arg-type]


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of [B, C, H, W], epsilon 1e-6."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normalised = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


class MLP(nn.Module):
    """Linear layers with ReLU between them, as `layers`."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else torch.relu(x))
        return x


def neck(cin: int, cout: int) -> nn.Sequential:
    """What every image encoder of SAM ends with."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, 1, bias=False),
        LayerNorm2d(cout),
        nn.Conv2d(cout, cout, 3, padding=1, bias=False),
        LayerNorm2d(cout),
    )


class GeluMLP(nn.Module):
    """`lin2(gelu(lin1(x)))`."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(nn.functional.gelu(self.lin1(x)))


def in_windows(attention: nn.Module, x: Tensor, side: int) -> Tensor:
    """Attention within windows of [B, h, w, C], the last ones padded with zeros."""
    b, h, w, c = x.shape
    x = nn.functional.pad(x, (0, 0, 0, -w % side, 0, -h % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    x = x.reshape(b, rows, side, columns, side, c).transpose(2, 3).reshape(-1, side, side, c)
    x = attention(x).reshape(b, rows, columns, side, side, c).transpose(2, 3)
    return x.reshape(b, rows * side, columns * side, c)[:, :h, :w]

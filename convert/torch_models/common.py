"""Layers that the twins share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


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

"""The conditional random field of `repvit_sam_jax.crf`, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from repvit_sam_jax.crf import DILATIONS, FORWARD, NEIGHBOURS


class PixelFeatures(nn.Module):
    """Images [B, 3, S, S] and features [B, C, S/4, S/4] to [B, 16 D, S/16, S/16]."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.linear = nn.Conv2d(3 + cin, cout, 1)

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        colours = functional.avg_pool2d(images, 4)
        return functional.pixel_unshuffle(self.linear(torch.cat([colours, features], dim=1)), 4)


class MeanField(nn.Module):
    """Logits [P, M, S/4, S/4], what is added to them, and [1, 16 D, S/16, S/16] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.unary, self.pairwise, self.slope = (nn.Parameter(torch.tensor(x)) for x in (0.25, 5.0, 0.25))

    def forward(self, masks: Tensor, picture: Tensor | None, pixels: Tensor) -> Tensor:
        affinity = self._affinities(functional.pixel_shuffle(pixels, 4))
        fixed = self.unary * masks if picture is None else self.unary * masks + picture
        h, w = masks.shape[-2:]
        x = fixed
        for d in DILATIONS:
            padded = functional.pad(torch.tanh(self.slope * x), (d, d, d, d))
            neighbours = torch.zeros_like(x)
            for (i, j), weight in zip(NEIGHBOURS, affinity[d], strict=True):
                neighbours = neighbours + weight * padded[..., d + d * i : d + d * i + h, d + d * j : d + d * j + w]
            x = fixed + self.pairwise * neighbours
        return x

    def _affinities(self, features: Tensor) -> dict[int, list[Tensor]]:
        h, w = features.shape[-2:]
        found = {}
        for d in set(DILATIONS):
            near = []
            for i, j in FORWARD:
                left, right = max(-d * j, 0), max(d * j, 0)
                one = features[..., : h - d * i, left : w - right]
                other = features[..., d * i :, right : w - left]
                weight = torch.exp(-(one - other).square().sum(1, keepdim=True))
                near.append(
                    [functional.pad(weight, (left, right, 0, d * i)), functional.pad(weight, (right, left, d * i, 0))]
                )
            ordered = [pair[0] for pair in near] + [pair[1] for pair in near]
            total = torch.stack(ordered).sum(0) + 1e-3
            found[d] = [weight / total for weight in ordered]
        return found

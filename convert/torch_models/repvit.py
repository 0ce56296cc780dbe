"""RepViT as SAM's image encoder and as a classifier, in PyTorch. Attribute names follow the published keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repvit_sam_jax.config import ClassifierConfig, RepViTBlockConfig, RepViTConfig
from repvit_sam_jax.models.layers import squeeze_width

from .common import ConvBN, neck, scale_and_shift, with_weights


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
        inner_scale, inner_shift = scale_and_shift(self.conv.bn)
        weight = self.conv.c.weight.double() * inner_scale[:, None, None, None]
        weight[:, :, 1, 1] += self.conv1.weight.double()[:, :, 0, 0] + 1.0
        assert self.conv1.bias is not None
        bias = inner_shift + self.conv1.bias.double()
        scale, shift = scale_and_shift(self.bn)
        return with_weights(self.conv.c, weight * scale[:, None, None, None], bias * scale + shift, (1, 1))


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


class RepViT(nn.Module):
    """Stem and blocks, as `features`."""

    def __init__(self, config: RepViTConfig):
        super().__init__()
        width = config.channels[0]
        stem = nn.Sequential(ConvBN(3, width // 2, 3, 2), nn.GELU(), ConvBN(width // 2, width, 3, 2))
        self.features = nn.ModuleList([stem, *(RepViTBlock(block) for block in config.blocks())])

    def intermediates(self) -> dict[str, tuple[str, bool]]:
        """Intermediate in JAX -> the submodule that computes it, and whether its output is channels first."""
        blocks = {f"blocks.{i}": (f"features.{i}", True) for i in range(1, len(self.features))}
        return {"stem": ("features.0", True), **blocks}

    def extract(self, x: Tensor) -> Tensor:
        """The last block's output."""
        for feature in self.features:
            x = feature(x)
        return x


class RepViTEncoder(RepViT):
    """Images [B, 3, S, S] to embeddings [B, C, S/16, S/16]."""

    def __init__(self, config: RepViTConfig, out_channels: int):
        super().__init__(config)
        self.neck = neck(config.channels[-1], out_channels)

    def intermediates(self) -> dict[str, tuple[str, bool]]:
        return {**super().intermediates(), "neck": ("neck.1", True), "embedding": ("neck.3", True)}

    def forward(self, images: Tensor) -> Tensor:
        return self.neck(self.extract(images))


class BNLinear(nn.Sequential):
    """`bn`, then `l`, a linear layer."""

    bn: nn.BatchNorm1d
    l: nn.Linear  # noqa: E741

    def __init__(self, din: int, dout: int):
        super().__init__()
        self.add_module("bn", nn.BatchNorm1d(din))
        self.add_module("l", nn.Linear(din, dout))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one layer, float64."""
        scale, shift = scale_and_shift(self.bn)
        weight = self.l.weight.double()
        return weight * scale, self.l.bias.double() + weight @ shift


class Heads(nn.Module):
    """One head, or two whose mean is the answer."""

    def __init__(self, dim: int, num_classes: int, distilled: bool):
        super().__init__()
        self.classifier = BNLinear(dim, num_classes)
        self.classifier_dist = BNLinear(dim, num_classes) if distilled else None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        return logits if self.classifier_dist is None else (logits + self.classifier_dist(x)) / 2

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        weight, bias = self.classifier.folded()
        if self.classifier_dist is not None:
            second = self.classifier_dist.folded()
            weight, bias = (weight + second[0]) / 2, (bias + second[1]) / 2
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        return layer


class RepViTClassifier(RepViT):
    """Images [B, 3, S, S] to logits [B, classes]."""

    def __init__(self, config: ClassifierConfig):
        super().__init__(config.backbone)
        self.config = config
        self.classifier = Heads(config.backbone.channels[-1], config.num_classes, config.distilled)

    def intermediates(self) -> dict[str, tuple[str, bool]]:
        return {**super().intermediates(), "logits": ("classifier", False)}

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.extract(x).mean((2, 3)))

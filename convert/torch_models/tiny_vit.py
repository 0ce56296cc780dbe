"""MobileSAM's image encoder, TinyViT, in PyTorch. The attribute names follow the keys of the published state dict."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from repvit_sam_jax.config import TinyViTConfig

from .common import ConvBN, in_windows, neck


class PatchEmbed(nn.Module):
    """Two stride-2 convolutions with a GELU between them, as `seq`."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.seq = nn.Sequential(ConvBN(3, half, 3, 2), nn.GELU(), ConvBN(half, channels, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """An inverted bottleneck whose sum goes through a GELU as well."""

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        hidden = expansion * channels
        self.conv1 = ConvBN(channels, hidden, 1)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, channels, 1, scale_init=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x + self.conv3(gelu(self.conv2(gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """Three convolutions to another width and, with stride 2, half the resolution."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.conv1 = ConvBN(cin, cout, 1)
        self.conv2 = ConvBN(cout, cout, 3, stride, groups=cout)
        self.conv3 = ConvBN(cout, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x)))))


class Attention(nn.Module):
    """Self-attention over a window, biased by the absolute offset of two tokens."""

    columns: Tensor

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = (places[:, None] - places[None]).abs()
        self.register_buffer("columns", apart[..., 0] * window + apart[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + self.attention_biases[:, self.columns]
        out = torch.softmax(scores, dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """LayerNorm and two linear layers."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Attention within windows, a depthwise convolution, an MLP, on [B, C, h, w]."""

    def __init__(self, dim: int, num_heads: int, window: int, mlp_ratio: int):
        super().__init__()
        self.window = window
        self.attn = Attention(dim, num_heads, window)
        self.mlp = MLP(dim, mlp_ratio * dim)
        self.local_conv = ConvBN(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + in_windows(self.attn, tokens, self.window)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)


class Layer(nn.Module):
    """A stage: its blocks and what merges patches behind them."""

    def __init__(self, config: TinyViTConfig, index: int):
        super().__init__()
        dim, heads, window = config.channels[index], config.num_heads[index], config.window_sizes[index]
        self.blocks = nn.ModuleList(
            MBConv(dim, config.expansion) if index == 0 else TinyViTBlock(dim, heads, window, config.mlp_ratio)
            for _ in range(config.depths[index])
        )
        following = config.channels[index + 1 :]
        self.downsample = PatchMerging(dim, following[0], 1 if len(following) == 1 else 2) if following else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViTEncoder(nn.Module):
    """Images [B, 3, S, S] to embeddings [B, C, S/16, S/16]. `norm_head` and `head` are in the file and unused."""

    def __init__(self, config: TinyViTConfig, out_channels: int):
        super().__init__()
        self.patch_embed = PatchEmbed(config.channels[0])
        self.layers = nn.ModuleList(Layer(config, i) for i in range(len(config.channels)))
        self.norm_head = nn.LayerNorm(config.channels[-1])
        self.head = nn.Linear(config.channels[-1], config.num_classes)
        self.neck = neck(config.channels[-1], out_channels)

    def intermediates(self) -> dict[str, tuple[str, bool]]:
        """Intermediate in JAX -> the submodule that computes it, and whether its output is channels first."""
        names = ["stem"]
        for name, module in self.layers.named_modules():
            if isinstance(module, MBConv | TinyViTBlock | PatchMerging):
                names.append(f"layers.{name}")
        found = {name: ("patch_embed" if name == "stem" else name, True) for name in names}
        return {**found, "neck": ("neck.1", True), "embedding": ("neck.3", True)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)

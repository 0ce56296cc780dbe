"""SAM's ViT image encoder in PyTorch. The attribute names follow the keys of the published state dicts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from repvit_sam_jax.config import ViTConfig

from .common import GeluMLP, in_windows, neck


class PatchEmbed(nn.Module):
    """Patches to tokens [B, h, w, dim]."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


def _relative(table: Tensor, size: int) -> Tensor:
    if table.shape[0] != 2 * size - 1:
        table = functional.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


class Attention(nn.Module):
    """Multi-head self-attention over a square of tokens, with decomposed relative positions."""

    def __init__(self, dim: int, num_heads: int, table_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_size - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_size - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        # Image and head share an axis: Core ML takes five.
        qkv = self.qkv(x).flatten(1, 2).unflatten(2, (3 * self.num_heads, -1)).transpose(1, 2)
        q, k, v = (part.flatten(0, 1) for part in qkv.chunk(3, dim=1))
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        grid = q.unflatten(1, (h, w))
        bias_h = torch.einsum("nhwd,hkd->nhwk", grid, _relative(self.rel_pos_h, h))
        bias_w = torch.einsum("nhwd,wkd->nhwk", grid, _relative(self.rel_pos_w, w))
        scores = scores.unflatten(1, (h, w)).unflatten(3, (h, w)) + bias_h[..., None] + bias_w[..., None, :]
        weights = torch.softmax(scores.flatten(3).flatten(1, 2), dim=-1)
        return self.proj((weights @ v).unflatten(0, (b, -1)).transpose(1, 2).reshape(b, h, w, -1))


class Block(nn.Module):
    """Attention, within windows or over the whole image, and an MLP."""

    def __init__(self, config: ViTConfig, window: int):
        super().__init__()
        dim = config.embed_dim
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads, window or config.grid_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = GeluMLP(dim, config.mlp_dim or 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (in_windows(self.attn, y, self.window) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))


class ViTEncoder(nn.Module):
    """Images [B, 3, S, S] to embeddings [B, C, S/16, S/16]."""

    def __init__(self, config: ViTConfig, out_channels: int):
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.embed_dim))
        windows = [0 if i in config.global_attn_indexes else config.window_size for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, window) for window in windows)
        self.neck = neck(config.embed_dim, out_channels)

    def intermediates(self) -> dict[str, tuple[str, bool]]:
        """Intermediate in JAX -> the submodule that computes it, and whether its output is channels first."""
        blocks = {f"blocks.{i}": (f"blocks.{i}", False) for i in range(len(self.blocks))}
        return {"stem": ("patch_embed", False), **blocks, "neck": ("neck.1", True), "embedding": ("neck.3", True)}

    def embed(self, x: Tensor) -> Tensor:
        """Patches with their positions, which are resized where the grid is another one."""
        x = self.patch_embed(x)
        positions: Tensor = self.pos_embed
        if positions.shape[1:3] != x.shape[1:3]:
            channels_first = positions.permute(0, 3, 1, 2)
            resized = functional.interpolate(channels_first, x.shape[1:3], mode="bilinear", align_corners=False)
            positions = resized.permute(0, 2, 3, 1)
        return x + positions

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))

"""SAM's prompt encoder, mask decoder and their composition with an image encoder, in PyTorch.

Shapes are SAM's: channels first, one image and P prompts a call of `decode`. There is no `repeat_interleave`
and no data-dependent size, so that the modules can be exported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from repvit_sam_jax.config import EncoderConfig, MaskDecoderConfig, SamConfig, TinyViTConfig, ViTConfig

from .common import MLP, LayerNorm2d, fuse
from .repvit import RepViTEncoder
from .tiny_vit import TinyViTEncoder
from .vit import ViTEncoder


class PositionEncoding(nn.Module):
    """Random Fourier features of coordinates in [0, 1]."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, coords: Tensor) -> Tensor:
        angles = 2 * math.pi * ((2 * coords - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _downscaling(hidden: int, cout: int) -> nn.Sequential:
    """Mask logits [P, 1, S/4, S/4] to the size and width of the image embedding."""
    return nn.Sequential(
        nn.Conv2d(1, hidden // 4, 2, 2),
        LayerNorm2d(hidden // 4),
        nn.GELU(),
        nn.Conv2d(hidden // 4, hidden, 2, 2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.Conv2d(hidden, cout, 1),
    )


class PromptEncoder(nn.Module):
    """Points, boxes and masks to tokens [P, T, C] and a dense map [P or 1, C, h, w]."""

    def __init__(self, config: SamConfig):
        super().__init__()
        decoder = config.mask_decoder
        dim = decoder.embed_dim
        self.image_size, self.embedding_size = config.image_size, config.embedding_size
        self.pe_layer = PositionEncoding(dim // 2)
        self.point_embeddings: Any = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = _downscaling(decoder.mask_in_channels, dim)
        self.no_mask_embed = nn.Embedding(1, dim)

    def image_pe(self) -> Tensor:
        """[1, C, h, w]."""
        size = self.embedding_size
        centres = (torch.arange(size, device=self.no_mask_embed.weight.device) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]

    def forward(
        self, coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        given = next(t for t in (coords, boxes, masks) if t is not None)
        count, device = given.shape[0], given.device
        tokens = [torch.zeros(count, 0, self.no_mask_embed.embedding_dim, device=device)]
        if coords is not None and labels is not None:
            if boxes is None:
                coords = torch.cat([coords, torch.zeros(count, 1, 2, device=device)], dim=1)
                labels = torch.cat([labels, -torch.ones(count, 1, dtype=labels.dtype, device=device)], dim=1)
            placed = (labels >= 0)[..., None]
            kinds = torch.cat([self.not_a_point_embed.weight, *(e.weight for e in self.point_embeddings)])
            tokens.append(self._position(coords) * placed + kinds[labels.long() + 1])
        if boxes is not None:
            corners = torch.cat([self.point_embeddings[2].weight, self.point_embeddings[3].weight])
            tokens.append(self._position(boxes.reshape(count, 2, 2)) + corners)
        dense = self.no_mask_embed.weight[:, :, None, None] if masks is None else self.mask_downscaling(masks)
        return torch.cat(tokens, dim=1), dense

    def _position(self, coords: Tensor) -> Tensor:
        return self.pe_layer((coords + 0.5) / self.image_size)


class Attention(nn.Module):
    """Multi-head attention with separate projections and a narrower inside."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1):
        super().__init__()
        inner = dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class TransformerMLP(nn.Module):
    """`lin2(relu(lin1(x)))`."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(torch.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP, image to tokens."""

    def __init__(self, config: MaskDecoderConfig, first: bool):
        super().__init__()
        dim, heads, rate = config.embed_dim, config.num_heads, config.attention_downsample_rate
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TransformerMLP(dim, config.mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, rate)
        self.first = first

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_pe
            tokens = self.norm1(tokens + self.self_attn(q, q, tokens))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens)
        return tokens, self.norm4(image + update)


class TwoWayTransformer(nn.Module):
    """The blocks and a last attention from tokens to image."""

    def __init__(self, config: MaskDecoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.depth))
        self.final_attn_token_to_image = Attention(config.embed_dim, config.num_heads, config.attention_downsample_rate)
        self.norm_final_attn = nn.LayerNorm(config.embed_dim)

    def forward(self, image: Tensor, image_pe: Tensor, token_pe: Tensor) -> tuple[Tensor, Tensor]:
        tokens = token_pe
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class MaskDecoder(nn.Module):
    """Image [P or 1, C, h, w] and tokens [P, T, C] to logits [P, 4, 4h, 4w] and predicted IoU [P, 4]."""

    def __init__(self, config: MaskDecoderConfig):
        super().__init__()
        dim, count = config.embed_dim, config.num_mask_tokens
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(count, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP((dim, dim, dim, dim // 8)) for _ in range(count))
        hidden = [config.iou_head_hidden_dim] * (config.iou_head_depth - 1)
        self.iou_prediction_head = MLP((dim, *hidden, count))

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        count, (h, w) = tokens.shape[0], image.shape[2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(count, -1, -1), tokens], dim=1)
        image = image.expand(count, -1, -1, -1)
        tokens, image = self.transformer(image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2), tokens)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, (h, w)))
        weights = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = (torch.stack(weights, dim=1) @ upscaled.flatten(2)).unflatten(2, (4 * h, 4 * w))
        return masks, self.iou_prediction_head(tokens[:, 0])


def image_encoder(config: EncoderConfig, decoder: MaskDecoderConfig) -> RepViTEncoder | ViTEncoder | TinyViTEncoder:
    """The encoder of a config's family."""
    if isinstance(config, ViTConfig):
        return ViTEncoder(config, decoder.embed_dim)
    if isinstance(config, TinyViTConfig):
        return TinyViTEncoder(config, decoder.embed_dim)
    return RepViTEncoder(config, decoder.embed_dim)


class Sam(nn.Module):
    """The whole segmenter. `Sam(config).fuse()` is the deploy form, whose state dict has the fused names."""

    def __init__(self, config: SamConfig):
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder(config.image_encoder, config.mask_decoder)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config.mask_decoder)

    def fuse(self) -> Sam:
        """Fold BatchNorm and RepVGGDW branches, in float64 and in place; returns the module itself."""
        fuse(self.image_encoder)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Normalised, padded images [B, 3, S, S] to embeddings [B, C, S/16, S/16]."""
        return self.image_encoder(images)

    def decode(
        self,
        embedding: Tensor,
        coords: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Logits [P, M, S/4, S/4] and predicted IoU [P, M] for P prompts on one image.

        `embedding` [1, C, h, w], `coords` [P, N, 2] and `boxes` [P, 4] in the resized frame, `labels` [P, N],
        `masks` [P, 1, S/4, S/4].
        """
        tokens, dense = self.prompt_encoder(coords, labels, boxes, masks)
        logits, iou = self.mask_decoder(embedding + dense, self.prompt_encoder.image_pe(), tokens)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return logits[:, chosen], iou[:, chosen]

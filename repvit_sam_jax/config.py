"""Configurations of the models: frozen dataclasses and the named presets. No arrays live here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Form = Literal["train", "deploy"]
"""`train`: every branch and BatchNorm of RepViT. `deploy`: one convolution for each of them."""

FORMS: tuple[Form, ...] = ("train", "deploy")


@dataclass(frozen=True)
class RepViTBlockConfig:
    """One row of RepViT's architecture table."""

    index: int
    """Position in the official `features` list, where 0 is the stem."""
    in_channels: int
    out_channels: int
    stride: int
    use_se: bool
    downsample: bool


@dataclass(frozen=True)
class RepViTConfig:
    """RepViT as SAM's image encoder (arXiv 2307.09283 for the network, 2312.05760 for its use in SAM)."""

    channels: tuple[int, ...]
    """Width of each stage."""
    depths: tuple[int, ...]
    """Stride-1 blocks of each stage: the downsampling block in front of stages 1, 2, ... is not counted."""
    last_stride: int = 1
    """Stride of the last downsampling block: 2 in the classifier, 1 in RepViT-SAM, so that the output stride is 16."""
    neck_channels: int = 256
    family: Literal["repvit"] = "repvit"

    def blocks(self) -> Iterator[RepViTBlockConfig]:
        """The rows in order. Every other stride-1 block has squeeze-excite, but never a stage's last of several."""
        index, last = 1, len(self.depths) - 1
        for stage, (width, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            if stage > 0:
                stride = self.last_stride if stage == last else 2
                yield RepViTBlockConfig(index, self.channels[stage - 1], width, stride, use_se=False, downsample=True)
                index += 1
            for i in range(depth):
                use_se = i % 2 == 0 and (i < depth - 1 or depth == 1)
                yield RepViTBlockConfig(index, width, width, 1, use_se, downsample=False)
                index += 1


@dataclass(frozen=True)
class ViTConfig:
    """SAM's ViT image encoder (arXiv 2304.02643; 2203.16527 for windowed and global attention)."""

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    """Blocks that attend to the whole image; the others attend within windows."""
    window_size: int = 14
    """Side of a window, in patches."""
    patch_size: int = 16
    grid_size: int = 64
    """Patches a side that the tables of positions are stored for: the training image size over `patch_size`."""
    mlp_ratio: int = 4
    neck_channels: int = 256
    family: Literal["vit"] = "vit"

    def runs(self) -> list[list[tuple[int, ...]]]:
        """Block indices as runs of equally built groups: (windowed, ..., global) repeated, and what remains."""
        groups, start = [], 0
        for end in (*self.global_attn_indexes, self.depth - 1):
            if end >= start:
                groups.append(tuple(range(start, end + 1)))
                start = end + 1
        runs: list[list[tuple[int, ...]]] = []
        kinds = [tuple(i in self.global_attn_indexes for i in group) for group in groups]
        for group, kind, before in zip(groups, kinds, [None, *kinds[:-1]], strict=True):
            if kind == before:
                runs[-1].append(group)
            else:
                runs.append([group])
        return runs


EncoderConfig = RepViTConfig | ViTConfig
_FAMILIES: dict[str, type[EncoderConfig]] = {"repvit": RepViTConfig, "vit": ViTConfig}


@dataclass(frozen=True)
class MaskDecoderConfig:
    """SAM's prompt encoder and mask decoder (arXiv 2304.02643, appendix A)."""

    embed_dim: int = 256
    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    mask_in_channels: int = 16

    @property
    def num_mask_tokens(self) -> int:
        """The single mask's and those of the multimask output."""
        return self.num_multimask_outputs + 1


@dataclass(frozen=True)
class SamConfig:
    """A whole segmenter: image encoder, prompt encoder and mask decoder, and how its input is prepared."""

    name: str
    image_encoder: EncoderConfig
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    image_size: int = 1024
    """Side S of the square that images are resized and padded to, in pixels."""
    mask_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or self.image_size <= 0 or self.image_size % 16:
            raise ValueError(f"image_size must be a positive multiple of 16, got {self.image_size}")

    @property
    def has_batch_norm(self) -> bool:
        """Whether the training form holds statistics, and differs from the deploy form at all."""
        return isinstance(self.image_encoder, RepViTConfig)

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding: S / 16."""
        return self.image_size // 16

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's mask logits and of mask prompts: S / 4."""
        return self.image_size // 4

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamConfig:
        """Rebuild a config from `to_dict`'s output, also after a trip through JSON.

        Raises:
          ValueError: a field is missing or unknown.
        """
        try:
            encoder: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values["image_encoder"].items()
            }
            rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            rest["image_encoder"] = _FAMILIES[encoder["family"]](**encoder)
            rest["mask_decoder"] = MaskDecoderConfig(**values["mask_decoder"])
            return cls(**rest)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a model config of this library: {error}") from error


_ENCODERS = {
    "m0_6": RepViTConfig(channels=(40, 80, 160, 320), depths=(2, 2, 9, 1)),
    "m0_9": RepViTConfig(channels=(48, 96, 192, 384), depths=(3, 3, 15, 2)),
    "m1_0": RepViTConfig(channels=(56, 112, 224, 448), depths=(3, 3, 15, 2)),
    "m1_1": RepViTConfig(channels=(64, 128, 256, 512), depths=(3, 3, 13, 2)),
    "m1_5": RepViTConfig(channels=(64, 128, 256, 512), depths=(5, 5, 25, 4)),
    "m2_3": RepViTConfig(channels=(80, 160, 320, 640), depths=(7, 7, 35, 2)),
}

PRESETS: dict[str, SamConfig] = {
    "repvit_sam": SamConfig("repvit_sam", _ENCODERS["m2_3"]),
    **{f"repvit_sam_{m}": SamConfig(f"repvit_sam_{m}", c) for m, c in _ENCODERS.items() if m != "m2_3"},
    "sam_vit_b": SamConfig("sam_vit_b", ViTConfig(768, 12, 12, (2, 5, 8, 11))),
    "sam_vit_l": SamConfig("sam_vit_l", ViTConfig(1024, 24, 16, (5, 11, 17, 23))),
    "sam_vit_h": SamConfig("sam_vit_h", ViTConfig(1280, 32, 16, (7, 15, 23, 31))),
    "tiny": SamConfig(
        "tiny",
        RepViTConfig(channels=(8, 16, 24, 32), depths=(3, 2, 5, 2), neck_channels=32),
        MaskDecoderConfig(embed_dim=32, num_heads=2, mlp_dim=64, iou_head_hidden_dim=32, mask_in_channels=8),
        image_size=128,
    ),
    "tiny_vit_sam": SamConfig(
        "tiny_vit_sam",
        ViTConfig(32, 4, 2, (1, 3), window_size=3, grid_size=8, mlp_ratio=2, neck_channels=32),
        MaskDecoderConfig(embed_dim=32, num_heads=2, mlp_dim=64, iou_head_hidden_dim=32, mask_in_channels=8),
        image_size=128,
    ),
}
"""`repvit_sam` is the published model (RepViT-M2.3); `tiny` and `tiny_vit_sam` are for tests."""


ALIASES = {"repvit": "repvit_sam", "vit_b": "sam_vit_b", "vit_l": "sam_vit_l", "vit_h": "sam_vit_h"}
"""Names in the registries of the official repositories -> presets."""


def get_config(name: str, image_size: int | None = None) -> SamConfig:
    """The preset called `name` (or by its official name, such as `vit_b`), with another `image_size` if given.

    Raises:
      ValueError: no preset has that name, or the size is not a multiple of 16.
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}")
    config = PRESETS[name]
    return config if image_size is None else dataclasses.replace(config, image_size=image_size)

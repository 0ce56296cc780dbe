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
    image_encoder: RepViTConfig
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    image_size: int = 1024
    """Side S of the square that images are resized and padded to, in pixels."""
    mask_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or self.image_size <= 0 or self.image_size % 16:
            raise ValueError(f"image_size must be a positive multiple of 16, got {self.image_size}")

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
            rest["image_encoder"] = RepViTConfig(**encoder)
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
    "tiny": SamConfig(
        "tiny",
        RepViTConfig(channels=(8, 16, 24, 32), depths=(3, 2, 5, 2), neck_channels=32),
        MaskDecoderConfig(embed_dim=32, num_heads=2, mlp_dim=64, iou_head_hidden_dim=32, mask_in_channels=8),
        image_size=128,
    ),
}
"""`repvit_sam` is the published model (RepViT-M2.3); `tiny` has every kind of block and is for tests."""


def get_config(name: str, image_size: int | None = None) -> SamConfig:
    """The preset called `name`, with another `image_size` (pixels) if one is given.

    Raises:
      ValueError: no preset has that name, or the size is not a multiple of 16.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}")
    config = PRESETS[name]
    return config if image_size is None else dataclasses.replace(config, image_size=image_size)

"""Configurations of the models: frozen dataclasses and the named presets. No arrays live here."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16"]
"""A model's arithmetic, or the kernels of a file."""

Form = Literal["train", "deploy"]
"""`train`: every branch and BatchNorm. `deploy`: one convolution or linear layer for each of them."""

FORMS: tuple[Form, ...] = ("train", "deploy")

Format = Literal["png", "rle", "coco", "polygons", "yolo"]
"""Files of masks, see `inference.formats`."""

SUFFIXES: dict[Format, str] = {"png": ".png", "rle": ".json", "coco": ".json", "polygons": ".json", "yolo": ".txt"}

Choice = Literal["auto", "single", "best", "all", "0", "1", "2"]
"""Which masks of a prompt, see `inference.photos.choose`."""


def _check(config: Any, **bounds: tuple[float, float]) -> None:
    """Raises ValueError unless fields, or all entries of those that are tuples, are numbers within their bounds.

    Bounds are far beyond any model, and keep a damaged or crafted file from asking for all memory. Those of integers
    are integers.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        kinds = (int,) if isinstance(low, int) else (int, float)
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) not in kinds or not low <= number <= high:
                kind = "an integer" if kinds == (int,) else "a number"
                raise ValueError(f"{name} must be {kind} from {low:g} to {high:g}, got {str(value)[:60]}")


def _check_stages(config: Any, *names: str) -> None:
    lengths = {len(getattr(config, name)) for name in names}
    if len(lengths) > 1 or not 1 <= lengths.pop() <= 16:
        raise ValueError(f"{', '.join(names)} must have one entry for each of 1 to 16 stages")


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
    """RepViT (arXiv 2307.09283), as a classifier's backbone or as SAM's image encoder (2312.05760)."""

    channels: tuple[int, ...]
    """Width of each stage."""
    depths: tuple[int, ...]
    """Stride-1 blocks of each stage: the downsampling block in front of stages 1, 2, ... is not counted."""
    last_stride: int = 1
    """Stride of the last downsampling block: 2 in the classifier, 1 in RepViT-SAM, so that the output stride is 16."""
    family: Literal["repvit"] = "repvit"

    def __post_init__(self) -> None:
        _check_stages(self, "channels", "depths")
        _check(self, channels=(2, 8192), depths=(1, 128), last_stride=(1, 2))

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
    mlp_dim: int | None = None
    """Hidden channels of the MLPs; four times `embed_dim` if None."""
    family: Literal["vit"] = "vit"

    def __post_init__(self) -> None:
        _check(self, embed_dim=(1, 16384), depth=(1, 128), num_heads=(1, 256), window_size=(1, 1024))
        if self.mlp_dim is None:
            object.__setattr__(self, "mlp_dim", 4 * self.embed_dim)
        _check(self, patch_size=(1, 256), grid_size=(1, 4096), mlp_dim=(1, 65536))
        _check(self, global_attn_indexes=(0, self.depth - 1))
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if list(self.global_attn_indexes) != sorted(set(self.global_attn_indexes)):
            raise ValueError(f"global_attn_indexes must rise, got {self.global_attn_indexes}")

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


@dataclass(frozen=True)
class TinyViTConfig:
    """TinyViT (arXiv 2207.10666) as MobileSAM's image encoder (2306.14289): the last stage stays at stride 16."""

    channels: tuple[int, ...]
    """Width of each stage. The first is made of MBConv blocks, the others of attention within windows."""
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    """Attention heads of each stage; the first has none and its number is not used."""
    window_sizes: tuple[int, ...]
    """Side of each stage's windows, in tokens; the first is not used."""
    num_classes: int = 1000
    """Classes of the head, which the published checkpoint carries along and nothing uses."""
    family: Literal["tiny_vit"] = "tiny_vit"

    expansion = 4
    """Hidden channels over input channels in the MBConv blocks."""
    mlp_ratio = 4

    def __post_init__(self) -> None:
        _check_stages(self, "channels", "depths", "num_heads", "window_sizes")
        _check(self, channels=(2, 8192), depths=(1, 128), num_heads=(1, 256), window_sizes=(1, 1024))
        _check(self, num_classes=(1, 1_000_000))


EncoderConfig = RepViTConfig | ViTConfig | TinyViTConfig
_FAMILIES: dict[str, type[EncoderConfig]] = {"repvit": RepViTConfig, "vit": ViTConfig, "tiny_vit": TinyViTConfig}


@dataclass(frozen=True)
class MaskDecoderConfig:
    """SAM's prompt encoder and mask decoder (arXiv 2304.02643, appendix A)."""

    embed_dim: int = 256
    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    iou_head_hidden_dim: int = 256
    mask_in_channels: int = 16

    attention_downsample_rate = 2
    iou_head_depth = 3
    num_mask_tokens = 4
    """The single mask's and those of the multimask output."""

    def __post_init__(self) -> None:
        _check(self, embed_dim=(8, 8192), depth=(1, 64), num_heads=(1, 256), mlp_dim=(1, 65536))
        _check(self, iou_head_hidden_dim=(1, 65536), mask_in_channels=(4, 4096))


@dataclass(frozen=True)
class GeneratorDefaults:
    """Thresholds of the automatic mask generator that suit a model; those of SAM unless given."""

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0

    def __post_init__(self) -> None:
        _check(self, pred_iou_thresh=(-1e6, 1e6), stability_score_thresh=(-1e6, 1e6), stability_score_offset=(0.0, 1e6))


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 100:
        raise ValueError(f"a model's name must have 1 to 100 printable characters, got {str(name)[:60]!r}")


def _plain(size: Any) -> Any:
    """Python's integer in place of NumPy's; anything else stays what it is."""
    return operator.index(size) if hasattr(size, "__index__") else size


@dataclass(frozen=True)
class SamConfig:
    """A whole segmenter: image encoder, prompt encoder and mask decoder, and how its input is prepared."""

    name: str
    image_encoder: EncoderConfig
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    image_size: int = 1024
    """Side S of the square that images are resized and padded to, in pixels."""
    mask_threshold: float = 0.0
    generator_defaults: GeneratorDefaults = GeneratorDefaults()

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _plain(self.image_size))
        if not isinstance(self.image_size, int) or self.image_size <= 0 or self.image_size % 16:
            raise ValueError(f"image_size must be a positive multiple of 16, got {self.image_size}")
        _check_name(self.name)
        _check(self, image_size=(16, 16384), mask_threshold=(-1e6, 1e6))

    @property
    def has_batch_norm(self) -> bool:
        """Whether the training form holds statistics, and differs from the deploy form at all."""
        return not isinstance(self.image_encoder, ViTConfig)

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding: S / 16."""
        return self.image_size // 16

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's mask logits and of mask prompts: S / 4."""
        return self.image_size // 4


@dataclass(frozen=True)
class ClassifierConfig:
    """RepViT as an ImageNet classifier, whose backbone is what distillation starts from."""

    name: str
    backbone: RepViTConfig
    distilled: bool
    """Two heads, the second trained on a teacher's answers; their mean is the result (arXiv 2012.12877)."""
    num_classes: int = 1000
    image_size: int = 224
    """Side S of the square that images are resized and cropped to, in pixels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _plain(self.image_size))
        if not isinstance(self.image_size, int) or self.image_size <= 0 or self.image_size % 32:
            raise ValueError(f"a classifier's image_size must be a positive multiple of 32, got {self.image_size}")
        _check_name(self.name)
        _check(self, image_size=(32, 16384), num_classes=(1, 1_000_000))
        if not isinstance(self.distilled, bool):
            raise ValueError(f"distilled must be true or false, got {str(self.distilled)[:60]}")

    has_batch_norm = True


ModelConfig = SamConfig | ClassifierConfig


_FORMER = {
    "mask_decoder": {
        "drawing_channels": 0,
        "crf_channels": 0,
        "attention_downsample_rate": 2,
        "num_multimask_outputs": 3,
        "iou_head_depth": 3,
    },
    "tiny_vit": {"expansion": 4, "mlp_ratio": 4},
}
"""Fields in files of 0.1, by part or family, and the only value of each with which this version can read them."""


def _without_former(values: dict[str, Any], part: str) -> dict[str, Any]:
    if part == "vit" and "mlp_ratio" in values:  # what `mlp_dim` was
        values = {**values, "mlp_dim": values["mlp_ratio"] * values["embed_dim"]}
        del values["mlp_ratio"]
    former = _FORMER.get(part, {})
    if extended := {name: values[name] for name, value in former.items() if values.get(name, value) != value}:
        raise ValueError(f"{part} has {extended}, which only version 0.1 could run")
    return {name: value for name, value in values.items() if name not in former}


def config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Rebuild a config from `dataclasses.asdict`'s output, also after a trip through JSON.

    Raises:
      ValueError: a field is missing or unknown, or the model has a part that this version no longer has.
    """
    try:
        decoder = _without_former(values.get("mask_decoder", {}), "mask_decoder")
        trunk = "backbone" if "backbone" in values else "image_encoder"
        given = _without_former(values[trunk], values[trunk]["family"])
        encoder: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        rest = {**values, trunk: _FAMILIES[encoder["family"]](**encoder)}
        if trunk == "backbone":
            return ClassifierConfig(**rest)
        defaults = GeneratorDefaults(**values.get("generator_defaults", {}))
        return SamConfig(**{**rest, "mask_decoder": MaskDecoderConfig(**decoder), "generator_defaults": defaults})
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

_TINY_DECODER = MaskDecoderConfig(embed_dim=32, num_heads=2, mlp_dim=64, iou_head_hidden_dim=32, mask_in_channels=8)
_DEMO_DECODER = MaskDecoderConfig(embed_dim=128, mlp_dim=512, iou_head_hidden_dim=128)

PRESETS: dict[str, SamConfig] = {
    config.name: config
    for config in (
        SamConfig("repvit_sam", _ENCODERS["m2_3"]),
        *(SamConfig(f"repvit_sam_{m}", encoder) for m, encoder in _ENCODERS.items() if m != "m2_3"),
        SamConfig("sam_vit_b", ViTConfig(768, 12, 12, (2, 5, 8, 11))),
        SamConfig("sam_vit_l", ViTConfig(1024, 24, 16, (5, 11, 17, 23))),
        SamConfig("sam_vit_h", ViTConfig(1280, 32, 16, (7, 15, 23, 31))),
        SamConfig("slimsam_50", ViTConfig(384, 12, 12, (2, 5, 8, 11))),
        SamConfig("slimsam_77", ViTConfig(168, 12, 12, (2, 5, 8, 11), mlp_dim=696)),
        SamConfig("mobile_sam", TinyViTConfig((64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7))),
        SamConfig(
            "demo",
            RepViTConfig((32, 64, 128, 256), (1, 1, 6, 1)),
            _DEMO_DECODER,
            image_size=512,
            generator_defaults=GeneratorDefaults(pred_iou_thresh=0.5, stability_score_thresh=0.7),
        ),
        SamConfig("tiny", RepViTConfig((8, 16, 24, 32), (3, 2, 5, 2)), _TINY_DECODER, image_size=128),
    )
}
"""The segmenters. `repvit_sam` is the published model (RepViT-M2.3); `demo` is small, and its weights come along;
`tiny` is what the recipe `smoke` trains, and has none."""

CLASSIFIERS: dict[str, ClassifierConfig] = {
    (name := f"repvit_{variant}{heads}"): ClassifierConfig(
        name, dataclasses.replace(encoder, last_stride=2), distilled=bool(heads)
    )
    for variant, encoder in _ENCODERS.items()
    for heads in ("", "_distill")
}
"""RepViT's ImageNet classifiers, with one head and with two, as published."""

MODELS: dict[str, ModelConfig] = {**PRESETS, **CLASSIFIERS}
"""All of them."""

ALIASES = {
    "repvit": "repvit_sam",
    "vit_b": "sam_vit_b",
    "vit_l": "sam_vit_l",
    "vit_h": "sam_vit_h",
    "vit_t": "mobile_sam",
}
"""Names in the registries of the official repositories -> presets."""

SAME_ARCHITECTURE = {"tiny_sam": "mobile_sam", "medsam": "sam_vit_b"}
"""Models that differ from a preset in their weights alone."""


def get_model_config(name: str, image_size: int | None = None) -> ModelConfig:
    """The preset called `name`, a segmenter (also by its official name, such as `vit_b`) or a classifier.

    Raises:
      ValueError: no preset has that name, or the model can't have that image size.
    """
    name = {**ALIASES, **SAME_ARCHITECTURE}.get(name, name)
    if name not in MODELS:
        raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(MODELS)}")
    return MODELS[name] if image_size is None else dataclasses.replace(MODELS[name], image_size=image_size)


def get_config(name: str, image_size: int | None = None) -> SamConfig:
    """The segmenter called `name`, with another `image_size` if given; errors as in `get_model_config`."""
    config = get_model_config(name, image_size)
    if not isinstance(config, SamConfig):
        raise ValueError(f"{name} is a classifier; the segmenters are {', '.join(PRESETS)}")
    return config


def get_classifier_config(name: str, image_size: int | None = None) -> ClassifierConfig:
    """The classifier called `name`, with another `image_size` if given; errors as in `get_model_config`."""
    config = get_model_config(name, image_size)
    if not isinstance(config, ClassifierConfig):
        raise ValueError(f"{name} is a segmenter; the classifiers are {', '.join(CLASSIFIERS)}")
    return config

"""RepViT's classifiers in the layout of timm (huggingface/pytorch-image-models, `repvit.py`): names, not numbers.

timm counts blocks within stages, the official code in one list, where a block in front of a downsampling one belongs to
the stage before; so the rules depend on how many blocks the stages have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...config import ClassifierConfig
from .renaming import Renaming, Rules, inverse

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _conv_bn(layout: str, official: str) -> Iterator[tuple[str, str]]:
    yield f"{layout}.c.weight", f"{official}.c.weight"
    for leaf in _NORM:
        yield f"{layout}.bn.{leaf}", f"{official}.bn.{leaf}"


def _block(layout: str, row: int) -> Iterator[tuple[str, str]]:
    mixer, official = f"{layout}.token_mixer", f"features.{row}"
    yield from _conv_bn(f"{mixer}.conv", f"{official}.token_mixer.0.conv")
    for leaf in ("weight", "bias"):
        yield f"{mixer}.conv1.{leaf}", f"{official}.token_mixer.0.conv1.{leaf}"
        for name in ("fc1", "fc2"):
            yield f"{layout}.se.{name}.{leaf}", f"{official}.token_mixer.1.{name}.{leaf}"
    for leaf in _NORM:
        yield f"{mixer}.bn.{leaf}", f"{official}.token_mixer.0.bn.{leaf}"
    for name, number in (("conv1", 0), ("conv2", 2)):
        yield from _conv_bn(f"{layout}.channel_mixer.{name}", f"{official}.channel_mixer.m.{number}")


def _downsampling(layout: str, row: int) -> Iterator[tuple[str, str]]:
    yield from _conv_bn(f"{layout}.spatial_downsample", f"features.{row}.token_mixer.0")
    yield from _conv_bn(f"{layout}.channel_downsample", f"features.{row}.token_mixer.2")
    for name, number in (("conv1", 0), ("conv2", 2)):
        yield from _conv_bn(f"{layout}.ffn.{name}", f"features.{row}.channel_mixer.m.{number}")


def _rules(depths: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """`depths` as in `RepViTConfig`: blocks between the downsampling ones."""
    for name, number in (("conv1", 0), ("conv2", 2)):
        yield from _conv_bn(f"stem.{name}", f"features.0.{number}")
    row = 1
    for stage, depth in enumerate(depths):
        is_last = stage == len(depths) - 1
        own = depth if is_last else depth - 1
        for block in range(own):
            yield from _block(f"stages.{stage}.blocks.{block}", row)
            row += 1
        if not is_last:
            following = f"stages.{stage + 1}.downsample"
            yield from _block(f"{following}.pre_block", row)
            yield from _downsampling(following, row + 1)
            row += 2
    for name, official in (("head.head", "classifier.classifier"), ("head.head_dist", "classifier.classifier_dist")):
        for leaf in ("weight", "bias"):
            yield f"{name}.l.{leaf}", f"{official}.l.{leaf}"
        for leaf in _NORM:
            yield f"{name}.bn.{leaf}", f"{official}.bn.{leaf}"


def rules(depths: tuple[int, ...]) -> Rules:
    """(timm's name, official name) of a RepViT with so many blocks."""
    return tuple(_rules(depths))


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether these are timm's names of a RepViT."""
    return any(key.startswith("stages.0.blocks.0.token_mixer.") for key in state) and "stem.conv1.c.weight" in state


def problem(state: Mapping[str, Any]) -> str:
    """Why a RepViT of timm's is none of the official ones, or nothing."""
    if "stages.0.blocks.0.token_mixer.conv1.c.weight" in state:
        return (
            "these are the weights of timm's repvit_m1, m2 or m3, whose blocks are another architecture than those of "
            "the published RepViTs (m0_9 to m2_3)"
        )
    return ""


def official(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict under official names."""
    counts: list[int] = []
    while any(key.startswith(f"stages.{len(counts)}.") for key in state):
        prefix = f"stages.{len(counts)}.blocks."
        counts.append(len({key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)}))
    depths = tuple(count + (stage < len(counts) - 1) for stage, count in enumerate(counts))
    return Renaming(rules(depths)).all_of(state)


def from_official(state: Mapping[str, Any], config: ClassifierConfig) -> dict[str, Any]:
    """A classifier's official state dict under timm's names."""
    return inverse(rules(config.backbone.depths)).all_of(state)

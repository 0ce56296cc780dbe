"""An image encoder to distil into, initialised from a classifier that was trained on ImageNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import repvit_sam_jax
from repvit_sam_jax.config import CLASSIFIERS, ClassifierConfig, RepViTConfig, SamConfig, get_config
from repvit_sam_jax.files import sha256
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.models.sam import Sam
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.checkpoint import CheckpointError, Metadata
from repvit_sam_jax.weights.formats import mapping

from .from_torch import check_target, read_state_dict


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What became of the tensors: paths, of the new model's params or, for `left_behind`, of the classifier's."""

    source: str
    target: str
    carried_over: tuple[str, ...]
    new: tuple[str, ...]
    left_behind: tuple[str, ...]

    def to_text(self) -> str:
        """A line for each part of the models, with the number of tensors."""
        lines = [f"{self.source} -> {self.target}"]
        for title, paths in (
            ("carried over", self.carried_over),
            ("new, random", self.new),
            ("left behind", self.left_behind),
        ):
            counts: dict[str, int] = {}
            for path in paths:
                parts = path.removeprefix("batch_stats/").split("/")
                part = "/".join(parts[:2] if parts[0] in ("image_encoder", "backbone") else parts[:1])
                counts[part] = counts.get(part, 0) + 1
            lines += [f"  {title:13s} {count:5d} tensors  {part}" for part, count in counts.items()]
        return "\n".join(lines)


def backbone(source: Path, target: Path, *, into: str = "repvit_sam", seed: int = 0) -> Transfer:
    """Write a training-form checkpoint whose image encoder starts from a classifier.

    The stem and all blocks carry over, BatchNorm statistics included; the stride of the last downsampling block changes
    from 2 to 1, which no tensor shows. Neck, prompt encoder and mask decoder are drawn at random.

    Args:
      source: an official classifier file, such as `repvit_m2_3_distill_450e.pth`.
      target: the `.safetensors` file to write.
      into: the preset of a RepViT segmenter.
      seed: of what is new.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is no classifier, is fused, is damaged, or is of another size than the segmenter's encoder.
      ValueError: an unknown preset, or a target that does not end in .safetensors.
    """
    check_target(target)
    config = get_config(into)
    state = read_state_dict(source)
    try:
        found, form = mapping.identify(state)
        given = _classifier_params(state, found, form, config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    fresh = jax.tree.map(np.asarray, Sam(config, "train").init(jax.random.key(seed)))
    params = {
        **fresh,
        "image_encoder": {**fresh["image_encoder"], **given["backbone"]},
        "batch_stats": {"image_encoder": given["batch_stats"]["backbone"]},
    }
    flat, old = dict(checkpoint.flatten(params)), dict(checkpoint.flatten(given))
    expected = dict(checkpoint.flatten(Sam(config, "train").abstract_params()))
    checkpoint.check(flat, expected, f"{source} in {into}")
    carried = {path.replace("backbone/", "image_encoder/", 1) for path in old if "backbone" in path.split("/")}
    converter = f"repvit_sam_jax {repvit_sam_jax.__version__}, backbone of {found.name}, the rest random"
    checkpoint.save(target, params, Metadata(config, "train", sha256(source), converter))
    return Transfer(
        found.name,
        config.name,
        carried_over=tuple(path for path in flat if path in carried),
        new=tuple(path for path in flat if path not in carried),
        left_behind=tuple(path for path in old if "backbone" not in path.split("/")),
    )


def _classifier_params(state: Mapping[str, np.ndarray], found: Any, form: str, config: SamConfig) -> Params:
    if not isinstance(found, ClassifierConfig):
        raise CheckpointError(f"these are weights of {found.name}, a segmenter; a RepViT classifier was expected")
    if form == "deploy":
        raise CheckpointError("the classifier is fused: its BatchNorms can't be had back, so it can't be trained")
    encoder = config.image_encoder
    if not isinstance(encoder, RepViTConfig) or not _same_tensors(encoder, found.backbone):
        fitting = [
            c.name
            for c in CLASSIFIERS.values()
            if isinstance(encoder, RepViTConfig) and _same_tensors(encoder, c.backbone)
        ]
        wanted = " or ".join(fitting) or "no RepViT classifier"
        raise CheckpointError(f"these are weights of {found.name}; the encoder of {config.name} is {wanted}'s")
    return mapping.to_params(state, found, "train")


def _same_tensors(a: RepViTConfig, b: RepViTConfig) -> bool:
    """Whether they differ in the last stride at most."""
    return dataclasses.replace(a, last_stride=b.last_stride) == b

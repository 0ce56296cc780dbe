"""What an export starts from, weights of either kind, and how it ends: a folder that is written whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import repvit_sam_jax
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.files import sha256
from repvit_sam_jax.inference.embeddings import encoder_sha256
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.models.sam import Sam
from repvit_sam_jax.weights.checkpoint import CheckpointError, Metadata
from repvit_sam_jax.weights.loading import find_weights, read_params

if TYPE_CHECKING:
    from ..torch_models import Sam as TorchSam


@dataclasses.dataclass(frozen=True)
class Source:
    """A segmenter in deploy form: the JAX model, and the PyTorch twin that holds the same weights."""

    config: SamConfig
    params: Params
    source_sha256: str
    """Hex digest of the file."""

    @property
    def model(self) -> Sam:
        """In deploy form and float32."""
        return Sam(self.config)

    def twin(self) -> TorchSam:
        """A new fused twin with these weights."""
        from ..to_torch import to_state_dict
        from ..torch_models import twin_of

        twin = twin_of(self.config, "deploy")
        twin.load_state_dict(to_state_dict(self.params, self.model), strict=True)
        return twin.requires_grad_(False)

    def metadata(self) -> dict[str, str]:
        """What an exported file says about itself: a checkpoint's strings, the image size, the encoder's digest."""
        about = Metadata(self.config, "deploy", self.source_sha256, f"repvit_sam_jax {repvit_sam_jax.__version__}")
        more = {"image_size": str(self.config.image_size), "encoder_sha256": encoder_sha256(self.params)}
        return {**about.to_strings(), **more}


def read_source(path: Path, image_size: int | None = None) -> Source:
    """A segmenter's weights, fused on the way if they are not.

    Args:
      path: a `.safetensors` file of this library, `demo` for the package's own, or a PyTorch checkpoint such as
        `repvit_sam.pt`.
      image_size: side of the input square in pixels, if not the checkpoint's.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is damaged, of an unknown model, or a classifier.
      ValueError: the image size is no positive multiple of 16.
    """
    if image_size is not None and (image_size <= 0 or image_size % 16):
        raise ValueError(f"--image-size must be a positive multiple of 16, such as 1024 or 512, got {image_size}")
    path = find_weights(path)
    config, _, params = read_params(path, "deploy")
    if not isinstance(config, SamConfig):
        raise CheckpointError(f"{path} holds the classifier {config.name}; give a segmenter, such as repvit_sam.pt")
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    return Source(config, params, "" if path.is_dir() else sha256(path))

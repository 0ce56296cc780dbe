"""PyTorch twins to ONNX files of fixed shapes. Needs the packages `onnx` and `onnxscript`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..torch_models import Sam


class _Encoder(nn.Module):
    def __init__(self, twin: Sam):
        super().__init__()
        self.twin = twin

    def forward(self, images: Tensor) -> Tensor:
        return self.twin.encode(images)


class _Decoder(nn.Module):
    def __init__(self, twin: Sam):
        super().__init__()
        self.twin = twin

    def forward(self, embedding: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.twin.decode(embedding, coords, labels)


def export_encoder(twin: Sam, path: Path) -> None:
    """One image: `images` [1, 3, S, S] to `embedding` [1, C, S/16, S/16]."""
    size = twin.config.image_size
    _export(_Encoder(twin), path, {"images": torch.zeros(1, 3, size, size)}, ["embedding"])


def export_decoder(twin: Sam, path: Path, prompts: int, points: int) -> None:
    """`prompts` prompts of `points` points on one image.

    Inputs `embedding` [1, C, S/16, S/16], `coords` [P, N, 2] in the resized frame and int32 `labels` [P, N]; outputs
    `low_res_masks` [P, 3, S/4, S/4] and `iou_predictions` [P, 3].
    """
    side, dim = twin.config.embedding_size, twin.config.mask_decoder.embed_dim
    given = {
        "embedding": torch.zeros(1, dim, side, side),
        "coords": torch.zeros(prompts, points, 2),
        "labels": torch.ones(prompts, points, dtype=torch.int32),
    }
    _export(_Decoder(twin), path, given, ["low_res_masks", "iou_predictions"])


def _export(module: nn.Module, path: Path, inputs: dict[str, Tensor], outputs: list[str]) -> None:
    torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=outputs,
        dynamo=True,
        external_data=False,
        verbose=False,
    )

"""PyTorch's side of the comparisons: the fused twin, eager and in channels_last."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from convert.to_torch import to_state_dict
from convert.torch_models import Sam as TorchSam
from convert.torch_models import twin_of
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.model import Params
from repvit_sam_jax.prompt_encoder import Prompts
from repvit_sam_jax.sam import Sam

from .harness import Candidate


def _fused_twin(model: Sam, params: Params) -> TorchSam:
    twin = twin_of(model.config, "deploy")
    twin.load_state_dict(to_state_dict(params, model), strict=True)
    return twin


def encoders(model: Sam, params: Params, images: np.ndarray) -> list[Candidate]:
    """The fused encoder on the same deploy-form params and images."""
    twin = _fused_twin(model, params)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    channels_last = _fused_twin(model, params).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given_last = given.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(module: TorchSam, x: torch.Tensor) -> np.ndarray:
        return module.encode(x).permute(0, 2, 3, 1).numpy()

    return [
        Candidate("torch_fp32", lambda: run(twin, given)),
        Candidate("torch_channels_last_fp32", lambda: run(channels_last, given_last), "torch_fp32"),
    ]


def encoder_macs(config: SamConfig) -> int:
    """Multiply-accumulates of convolutions and matrix products in the fused encoder, for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin_of(config, "deploy").encode(torch.empty(1, 3, config.image_size, config.image_size))
    return counter.get_total_flops() // 2


def decoders(model: Sam, params: Params, embedding: np.ndarray, prompts: Prompts) -> list[Candidate]:
    """The eager decoder on the same embedding and point prompts."""
    twin = _fused_twin(model, params)
    given = torch.from_numpy(embedding.transpose(0, 3, 1, 2).copy())
    coords = torch.from_numpy(np.array(prompts.point_coords[0]))
    labels = torch.from_numpy(np.array(prompts.point_labels[0]))

    @torch.inference_mode()
    def run() -> np.ndarray:
        return twin.decode(given, coords, labels)[0].numpy()

    return [Candidate("torch_fp32", run)]

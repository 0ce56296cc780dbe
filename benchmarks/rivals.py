"""The other side of the comparisons: the fused PyTorch twin, eager and in channels_last, and ONNX Runtime."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from convert.export.onnx import export_decoder
from convert.to_torch import to_state_dict
from convert.torch_models import Sam as TorchSam
from convert.torch_models import twin_of
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.model import Params
from repvit_sam_jax.prompt_encoder import Prompts
from repvit_sam_jax.sam import Sam

from .harness import Candidate


def fused_twin(model: Sam, params: Params) -> TorchSam:
    """The twin in deploy form, with these params."""
    twin = twin_of(model.config, "deploy")
    twin.load_state_dict(to_state_dict(params, model), strict=True)
    return twin


def encoders(model: Sam, params: Params, images: np.ndarray) -> list[Candidate]:
    """The fused encoder on the same deploy-form params and images: eager, in channels_last, and that in bfloat16."""
    twin = fused_twin(model, params)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    channels_last = fused_twin(model, params).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given_last = given.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(module: TorchSam, x: torch.Tensor) -> np.ndarray:
        return module.encode(x).permute(0, 2, 3, 1).float().numpy()

    half, given_half = copy.deepcopy(channels_last).bfloat16(), given_last.bfloat16()
    return [
        Candidate("torch_fp32", lambda: run(twin, given)),
        Candidate("torch_channels_last_fp32", lambda: run(channels_last, given_last), "torch_fp32"),
        Candidate("torch_channels_last_bf16", lambda: run(half, given_half), "torch_fp32", tolerance=5e-2),
    ]


def compiled_encoder(model: Sam, params: Params, images: np.ndarray) -> list[Candidate]:
    """The fused encoder under `torch.compile`, channels_last, if there is a C++ compiler."""
    twin = fused_twin(model, params).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(twin.image_encoder)

    @torch.inference_mode()
    def run() -> np.ndarray:
        return compiled(given).permute(0, 2, 3, 1).numpy()

    try:
        run()
    except Exception as error:
        print(f"without torch.compile: {str(error).splitlines()[0]}", file=sys.stderr)
        return []
    return [Candidate("torch_compile_fp32", run, "torch_fp32")]


def encoder_macs(config: SamConfig) -> int:
    """Multiply-accumulates of convolutions and matrix products in the fused encoder, for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin_of(config, "deploy").encode(torch.empty(1, 3, config.image_size, config.image_size))
    return counter.get_total_flops() // 2


def decoders(model: Sam, params: Params, embedding: np.ndarray, prompts: Prompts) -> list[Candidate]:
    """The decoder on the same embedding and point prompts, eager and, if it is installed, in ONNX Runtime."""
    twin = fused_twin(model, params)
    given = torch.from_numpy(embedding.transpose(0, 3, 1, 2).copy())
    coords = torch.from_numpy(np.array(prompts.point_coords[0]))
    labels = torch.from_numpy(np.array(prompts.point_labels[0]))

    @torch.inference_mode()
    def run() -> np.ndarray:
        return twin.decode(given, coords, labels)[0].numpy()

    return [Candidate("torch_fp32", run), *_onnxruntime(twin, given, coords, labels)]


def _onnxruntime(
    twin: TorchSam, embedding: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor
) -> list[Candidate]:
    missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"without ONNX Runtime: {', '.join(missing)} not installed", file=sys.stderr)
        return []
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    # Threads that spin after a run take their core from the candidate whose turn is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        export_decoder(twin, path, *labels.shape)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {"embedding": embedding.numpy(), "coords": coords.numpy(), "labels": labels.numpy()}
    return [
        Candidate("onnxruntime_fp32", lambda: session.run(["low_res_masks"], given)[0], "torch_fp32", tolerance=1e-5)
    ]

"""The other side of the comparisons: the fused PyTorch twin, eager and in channels_last, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from convert.export.onnx import export_decoder, export_encoder
from convert.to_torch import to_state_dict
from convert.torch_models import Sam as TorchSam
from convert.torch_models import twin_of
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.inference.prompts import append_not_a_point
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.models.prompt_encoder import Prompts
from repvit_sam_jax.models.sam import Sam

from .harness import Candidate


def fused_twin(model: Sam, params: Params) -> TorchSam:
    """The twin in deploy form, with these params."""
    twin = twin_of(model.config, "deploy")
    twin.load_state_dict(to_state_dict(params, model), strict=True)
    return twin


def device() -> torch.device:
    """A GPU if JAX uses one, too."""
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def encoders(model: Sam, params: Params, images: np.ndarray) -> list[Candidate]:
    """The fused encoder on the same deploy-form params and images: eager, in channels_last, and that in bfloat16."""
    twin, channels_last, half = (fused_twin(model, params).to(device()) for _ in range(3))
    channels_last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half.bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given, given_last = _given(images), _given(images).contiguous(memory_format=torch.channels_last)
    return [
        Candidate("torch_fp32", _run(twin.encode, given)),
        Candidate("torch_channels_last_fp32", _run(channels_last.encode, given_last), "torch_fp32"),
        Candidate("torch_bf16", _run(half.encode, given_last.bfloat16()), "torch_fp32", tolerance=5e-2),
    ]


def compiled_encoders(model: Sam, params: Params, images: np.ndarray) -> list[Candidate]:
    """The fused encoder under `torch.compile`, channels_last, as far as there is a compiler for it.

    On a GPU it is tuned (`max-autotune`), and there also in bfloat16.
    """
    on_gpu = device().type == "cuda"
    dtypes = {"fp32": (torch.float32, 5e-5)} | ({"bf16": (torch.bfloat16, 5e-2)} if on_gpu else {})
    found = []
    for name, (dtype, tolerance) in dtypes.items():
        twin = fused_twin(model, params).to(device(), dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compiled = torch.compile(twin.image_encoder, mode="max-autotune" if on_gpu else None)
        run = _run(compiled, _given(images).to(dtype).contiguous(memory_format=torch.channels_last))
        try:
            run()
        except Exception as error:
            print(f"without torch.compile: {str(error).splitlines()[0]}", file=sys.stderr)
            break
        found.append(Candidate(f"torch_compile_{name}", run, "torch_fp32", tolerance))
    return found


def exported_encoder(model: Sam, params: Params, images: np.ndarray) -> list[Candidate]:
    """The fused encoder in ONNX Runtime and OpenVINO on the CPU, as far as they are installed; it takes one image."""
    if len(images) > 1 or device().type != "cpu":
        return []
    twin = fused_twin(model, params)
    exported = _exported(lambda path: export_encoder(twin, path))
    given = {"images": images.transpose(0, 3, 1, 2).copy()}
    finish = lambda y: y.transpose(0, 2, 3, 1)
    return [*_onnxruntime(exported, given, "image_embeddings", finish), *_openvino(exported, given["images"], finish)]


def _given(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device())


def _run(encode: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> Callable[[], torch.Tensor]:
    @torch.inference_mode()
    def run() -> torch.Tensor:
        return _finished(encode(given).permute(0, 2, 3, 1).float())

    return run


def _finished(x: torch.Tensor) -> torch.Tensor:
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return x


def encoder_macs(config: SamConfig) -> int:
    """Multiply-accumulates of convolutions and matrix products in the fused encoder, for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin_of(config, "deploy").encode(torch.empty(1, 3, config.image_size, config.image_size))
    return counter.get_total_flops() // 2


def decoders(model: Sam, params: Params, embedding: np.ndarray, prompts: Prompts) -> list[Candidate]:
    """The decoder on the same embedding and point prompts, eager and, if it is installed, in ONNX Runtime."""
    twin = fused_twin(model, params)
    coords, labels = np.array(prompts.point_coords[0]), np.array(prompts.point_labels[0])
    channels_first = embedding.transpose(0, 3, 1, 2).copy()
    on_device = [torch.from_numpy(value).to(device()) for value in (channels_first, coords, labels)]
    twin.to(device())

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return _finished(twin.decode(*on_device)[0])  # type: ignore[arg-type]

    eager = Candidate("torch_fp32", run)
    if device().type != "cpu":
        return [eager]
    low = model.config.low_res_size
    point_coords, point_labels = append_not_a_point(coords, labels.astype(np.float32))
    given = {  # the exported decoder gives all four masks
        "image_embeddings": channels_first,
        "point_coords": point_coords,
        "point_labels": point_labels,
        "mask_input": np.zeros((1, 1, low, low), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    exported = _exported(lambda path: export_decoder(twin, path))
    return [eager, *_onnxruntime(exported, given, "low_res_masks", lambda y: y[:, 1:])]


def _exported(export: Callable[[Path], None]) -> Callable[[], Path]:
    """The ONNX model, made when it is first asked for; large weights lie in a file beside it."""

    @functools.cache
    def path() -> Path:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        export(folder / "model.onnx")
        return folder / "model.onnx"

    return path


def _onnxruntime(
    exported: Callable[[], Path],
    given: Mapping[str, np.ndarray],
    output: str,
    finish: Callable[[np.ndarray], np.ndarray],
) -> list[Candidate]:
    if not _installed("ONNX Runtime", "onnxruntime"):
        return []
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    # Threads that spin after a run take their core from the candidate whose turn is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(exported()), options, providers=["CPUExecutionProvider"])
    run = lambda: finish(session.run([output], given)[0])
    return [Candidate("onnxruntime_fp32", run, "torch_fp32")]


def _openvino(
    exported: Callable[[], Path], given: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]
) -> list[Candidate]:
    """The first output of a model with one input, whose shape becomes that of `given`."""
    if not _installed("OpenVINO", "openvino"):
        return []
    core = importlib.import_module("openvino").Core()
    network = core.read_model(str(exported()))
    network.reshape(given.shape)

    def candidate(name: str, precision: str, tolerance: float) -> Candidate:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        compiled = core.compile_model(network, "CPU", settings)
        return Candidate(name, lambda: finish(compiled(given)[0]), "torch_fp32", tolerance)

    return [candidate("openvino_fp32", "f32", 5e-5), candidate("openvino_bf16", "bf16", 5e-2)]


def _installed(name: str, package: str) -> bool:
    """Whether a runtime and what exports to it are there; says what is missing."""
    missing = [each for each in (package, "onnx", "onnxscript") if importlib.util.find_spec(each) is None]
    if missing:
        print(f"without {name}: {', '.join(missing)} not installed", file=sys.stderr)
    return not missing

"""Files for AnyLabeling, X-AnyLabeling and samexporter: an ONNX pair and the `config.yaml` that names it."""

from __future__ import annotations

import json
from pathlib import Path

from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.files import new_folder
from repvit_sam_jax.terminal import require

from ..report import Report
from .onnx import PACKAGES
from .pair import Tool, export_pair
from .source import read_source
from .tools import FRAME, CanvasDecoder, CanvasEncoder, check_fits

CONFIG = "config.yaml"
TOOL = Tool(
    "anylabeling",
    CanvasEncoder,
    CanvasDecoder,
    lambda config: (1, config.mask_decoder.embed_dim + 1, config.embedding_size, config.embedding_size),
    lambda config: config.image_size,
)


def export_anylabeling(
    weights: Path,
    out: Path,
    *,
    image_size: int | None = None,
    int8: bool = False,
    allow_past_tolerance: bool = False,
) -> Report:
    """Write `encoder.onnx`, `decoder.onnx` and `config.yaml`, all or nothing.

    For inputs and outputs see `tools.CanvasEncoder` and `tools.CanvasDecoder`.

    Args:
      weights: as `export_onnx`.
      out: a folder that is new or empty.
      image_size: side of the input square in pixels, if not the checkpoint's: 1024, or a divisor of it.
      int8: as `export_onnx`.
      allow_past_tolerance: as `export_onnx`.

    Raises:
      ValueError: a package is missing, `out` is not empty, or the image size does not fit.
      FileNotFoundError, CheckpointError, ExportError: as `export_onnx`.
    """
    require(*PACKAGES)
    source = read_source(weights, image_size)
    check_fits(source)
    with new_folder(out) as folder:
        report = export_pair(source, folder, TOOL, int8=int8, allow=allow_past_tolerance)
        (folder / CONFIG).write_text(config_yaml(source.config, int8))
        return report


def config_yaml(config: SamConfig, int8: bool = False) -> str:
    """What the tools read of a model.

    All three sizes must be there, and the tools use none of them. The name is a folder's in X-AnyLabeling, so that it
    has letters, digits, dots, hyphens and underscores only.
    """
    kind = f"{config.image_size}{', int8' if int8 else ''}"
    values = {
        "type": "segment_anything",
        "name": f"{config.name}_{config.image_size}{'_int8' if int8 else ''}",
        "provider": "repvit-sam-jax",
        "display_name": f"RepViT-SAM JAX: {config.name} ({kind})",
        "encoder_model_path": "encoder.onnx",
        "decoder_model_path": "decoder.onnx",
        "input_size": FRAME,
        "max_width": FRAME,
        "max_height": FRAME * 2 // 3,
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())

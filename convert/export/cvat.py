"""Files for CVAT: the decoder that its page runs in the browser, and the serverless function of the encoder."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from repvit_sam_jax.files import new_folder
from repvit_sam_jax.terminal import require

from ..report import Report
from .modules import FULL_SIZE_OUTPUTS
from .onnx import PACKAGES
from .pair import Tool, export_pair
from .source import Source, read_source
from .tools import EMBEDDING, FRAME, CroppingDecoder, PackedEncoder, check_fits

NUCLIO = Path(__file__).parent / "nuclio"
"""The serverless function, without its encoder."""
TOOL = Tool(
    "cvat",
    PackedEncoder,
    CroppingDecoder,
    lambda _: EMBEDDING,
    lambda _: FRAME,
    (*FULL_SIZE_OUTPUTS, "xtl", "ytl", "xbr", "ybr"),
)


def export_cvat(
    weights: Path,
    out: Path,
    *,
    image_size: int | None = None,
    int8: bool = False,
    allow_past_tolerance: bool = False,
) -> Report:
    """Write `decoder.onnx` and, in `nuclio/`, `function.yaml`, `main.py` and `encoder.onnx`, all or nothing.

    For inputs and outputs see `tools.PackedEncoder` and `tools.CroppingDecoder`.

    Args:
      weights: as `export_onnx`.
      out: a folder that is new or empty.
      image_size: side of the input square in pixels, if not the checkpoint's: 1024, or a divisor of it.
      int8: as `export_onnx`.
      allow_past_tolerance: as `export_onnx`.

    Raises:
      ValueError: a package is missing, `out` is not empty, or the image size or the embedding does not fit.
      FileNotFoundError, CheckpointError, ExportError: as `export_onnx`.
    """
    require(*PACKAGES)
    source = read_source(weights, image_size)
    check_fits(source)
    _check_embedding(source)
    with new_folder(out) as folder:
        report = export_pair(source, folder, TOOL, int8=int8, allow=allow_past_tolerance)
        (folder / "nuclio").mkdir()
        for name in ("function.yaml", "main.py"):
            shutil.copy(NUCLIO / name, folder / "nuclio")
        for part in folder.glob("encoder.onnx*"):
            part.replace(folder / "nuclio" / part.name)
        return report


def _check_embedding(source: Source) -> None:
    config = source.config
    values = config.mask_decoder.embed_dim * config.embedding_size**2
    if values > math.prod(EMBEDDING):
        raise ValueError(f"CVAT takes embeddings of {math.prod(EMBEDDING)} values, and this model's has {values}")

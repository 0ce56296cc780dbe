"""Encoder and decoder as Core ML packages, read back from disk and held against JAX without a Mac."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from repvit_sam_jax.files import new_folder
from repvit_sam_jax.terminal import require

from ..report import Report, compare
from ..torch_models import Sam
from ..torch_models.common import LayerNorm2d
from . import mil
from .gate import PAST_TOLERANCE, gate, worst, write_table
from .modules import DECODER_INPUTS, DECODER_OUTPUTS, ENCODER_OUTPUT, PADDING, Decoder, Encoder
from .quiet import import_quietly, quietly
from .source import Source, read_source
from .verify import ExportError, PromptCase, Refer, Reference, Tolerances, reference, verify

Precision = Literal["float16", "float32"]
Target = Literal["iOS16", "iOS17", "iOS18"]
Compression = Literal["int8", "palette6"]
InputType = Literal["image", "array"]

ENCODER_INPUT = "image"
MAX_POINTS = 16
"""Points of a prompt that the decoder takes, a box's corners and the not-a-point included."""
PADDING_TOLERANCE = 1e-2
"""Relative RMS of the embedding that padding with whole numbers may cost besides."""

BARS: dict[str, Tolerances] = {
    "float16": Tolerances(embedding=5e-3, masks=2e-2, iou=1e-2, flipped=5e-3),
    "int8": Tolerances(embedding=3e-2, masks=6e-2, iou=5e-2, flipped=2e-2),
    "palette6": Tolerances(embedding=6e-2, masks=1.5e-1, iou=1e-1, flipped=5e-2),
}
"""By precision or compression; float32 packages have the bars of all float32 code."""


def export_coreml(
    weights: Path,
    out: Path,
    *,
    image_size: int | None = None,
    precision: Precision = "float16",
    target: Target = "iOS17",
    compress: Compression | None = None,
    input_type: InputType = "image",
    allow_past_tolerance: bool = False,
) -> Report:
    """Write `encoder.mlpackage` and `decoder.mlpackage`, all or nothing.

    The encoder takes `image` [1, 3, S, S], pixels 0..255 in RGB, and gives `image_embeddings`. The decoder is
    `modules.Decoder` for one prompt of 1 to `MAX_POINTS` points. Both say in their metadata what a checkpoint says.

    Args:
      weights: a `.safetensors` file of this library or a PyTorch checkpoint.
      out: a folder that is new or empty.
      image_size: side of the input square in pixels, if not the checkpoint's.
      precision: of the arithmetic.
      target: the oldest system that is to run them.
      compress: store weights as 8-bit integers, or as indices into 64 values a tensor.
      input_type: `image` takes 8-bit images, `array` numbers.
      allow_past_tolerance: write packages that do not compute what the JAX model computes, with the table beside them
        and the worst figure in their metadata.

    Returns:
      The comparison of the saved packages with the JAX model, within tolerance unless that is allowed not to be.

    Raises:
      ValueError: a package is missing, `out` is not empty, or the image size is no multiple of 16.
      FileNotFoundError, CheckpointError: as `read_source`.
      ExportError: the packages are not built or do not compute as they should; nothing is written.
    """
    require("coremltools")
    if tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4):
        raise ValueError(f"coremltools fails with NumPy {np.__version__}: pip install 'numpy<2.4'")
    source = read_source(weights, image_size)
    with new_folder(out) as folder:
        twin, about = source.twin(), source.metadata()
        encoder = _convert_encoder(twin, precision, target, input_type)
        decoder = _convert_decoder(twin, precision, target)
        for name, model in (("encoder", encoder), ("decoder", decoder)):
            _save(_compressed(model, compress), folder / f"{name}.mlpackage", about)
        check_structure(twin, folder, precision)
        compare_with = functools.partial(check, source, folder, bars=BARS.get(compress or precision))
        report = gate(compare_with, source, precision, allow=allow_past_tolerance)
        if not report.passed:
            about |= {"past_tolerance": worst(report)}
            for name, model in (("encoder", encoder), ("decoder", decoder)):
                _save(_compressed(model, compress), folder / f"{name}.mlpackage", about)
            write_table(report, folder / PAST_TOLERANCE)
        return report


def _convert_encoder(twin: Sam, precision: Precision, target: Target, input_type: InputType) -> Any:
    ct = import_quietly("coremltools")
    shape = (1, 3, twin.config.image_size, twin.config.image_size)
    if input_type == "image":
        given = ct.ImageType(name=ENCODER_INPUT, shape=shape, color_layout=ct.colorlayout.RGB)
    else:
        given = ct.TensorType(name=ENCODER_INPUT, shape=shape, dtype=np.float32)
    example = (torch.full(shape, 128.0),)
    return _convert(Encoder(twin, normalise=True), example, [given], (ENCODER_OUTPUT,), precision, target)


def _convert_decoder(twin: Sam, precision: Precision, target: Target) -> Any:
    ct = import_quietly("coremltools")
    side, low, dim = twin.config.embedding_size, twin.config.low_res_size, twin.config.mask_decoder.embed_dim
    example = (
        torch.zeros(1, dim, side, side),
        torch.zeros(1, 2, 2),
        torch.ones(1, 2),
        torch.zeros(1, 1, low, low),
        torch.ones(1),
    )
    points = ct.RangeDim(1, MAX_POINTS, default=2)
    shapes = [example[0].shape, (1, points, 2), (1, points), example[3].shape, (1,)]
    wide = np.float16 if precision == "float16" else np.float32
    dtypes = [wide, np.float32, np.float32, wide, np.float32]  # in float16 coordinates would be half a pixel off
    given = [
        ct.TensorType(name=name, shape=shape, dtype=dtype)
        for name, shape, dtype in zip(DECODER_INPUTS, shapes, dtypes, strict=True)
    ]
    return _convert(Decoder(twin), example, given, DECODER_OUTPUTS, precision, target)


def _convert(
    module: nn.Module,
    example: tuple[Tensor, ...],
    given: list[Any],
    outputs: tuple[str, ...],
    precision: str,
    target: str,
) -> Any:
    ct = import_quietly("coremltools")
    half = ct.transform.FP16ComputePrecision(op_selector=lambda op: not _feeds_sine(op))
    with quietly():
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        try:
            return ct.convert(
                traced,
                inputs=given,
                outputs=[ct.TensorType(name=name) for name in outputs],
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, target),
                compute_precision=half if precision == "float16" else ct.precision.FLOAT32,
                skip_model_load=True,
            )
        except Exception as error:  # its errors share no class of their own
            raise ExportError(f"coremltools can't convert this model for {target}: {str(error).strip()}") from error


def _feeds_sine(op: Any) -> bool:
    """Whether an operation is part of the positions' Fourier features, where float16 would cost digits."""
    if op.op_type in ("sin", "cos"):
        return True
    if op.op_type not in ("cast", "add", "sub", "mul", "real_div", "linear", "matmul"):
        return False
    return any(_feeds_sine(child) for output in op.outputs for child in output.child_ops)


def _compressed(model: Any, compress: Compression | None) -> Any:
    if compress is None:
        return model
    with quietly():
        optimize = import_quietly("coremltools.optimize.coreml")
        if compress == "int8":
            config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
            shrink: Callable[..., Any] = optimize.linear_quantize_weights
        else:
            config = optimize.OpPalettizerConfig(mode="custom", lut_function=_palette)
            shrink = optimize.palettize_weights
        names = {name: None for name, found in optimize.get_weights_metadata(model).items() if _is_depthwise(found.val)}
        return shrink(model, config=optimize.OptimizationConfig(global_config=config, op_name_configs=names))


def _is_depthwise(weight: np.ndarray) -> bool:
    """Whether these are a depthwise convolution's kernels: half a percent of the weights, and most of the error."""
    return weight.ndim == 4 and weight.shape[1] == 1


def _palette(weight: np.ndarray, bits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The values that a tensor's weights are replaced by, by k-means from their quantiles, and the index of each."""
    values = np.sort(weight.reshape(-1).astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.quantile(values, (np.arange(1 << bits) + 0.5) / (1 << bits))
    for _ in range(50):
        ends = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        starts, ends = np.append(0, ends), np.append(ends, len(values))
        counts = ends - starts
        moved = np.where(counts, (sums[ends] - sums[starts]) / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    indices = np.searchsorted((centres[1:] + centres[:-1]) / 2, weight.reshape(-1))
    return centres.astype(weight.dtype), indices


def _save(model: Any, path: Path, about: dict[str, str]) -> None:
    spec = model.get_spec()
    sizes = {given.name: _describe(given) for given in spec.description.input}
    model.user_defined_metadata.update({**about, "inputs": json.dumps(sizes)})
    model.short_description = f"{path.stem} of {about['preset']}, {about['image_size']} pixels; repvit_sam_jax"
    model.author, model.license = "repvit_sam_jax", "Apache-2.0 (code); weights as their publisher says"
    with quietly():
        model.save(str(path))


def _describe(given: Any) -> str:
    """An input's size and kind, for the metadata."""
    if given.type.WhichOneof("Type") == "imageType":
        return f"RGB image {given.type.imageType.width} x {given.type.imageType.height}"
    array = given.type.multiArrayType
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    sizes = [str(low) if low == high else f"{low}..{high}" for low, high in ranges] or [str(n) for n in array.shape]
    return f"{array.ArrayDataType.Name(array.dataType).lower()} [{', '.join(sizes)}]"


def check_structure(twin: Sam, folder: Path, precision: Precision) -> None:
    """Look at the operations of the saved encoder.

    Raises:
      ExportError: it has not the convolutions of the fused twin, a BatchNorm of a block is left, or convolutions are in
        another precision.
    """
    program = mil.MilProgram(folder / "encoder.mlpackage")
    modules = list(twin.image_encoder.modules())
    counts = program.op_counts()
    expected = sum(isinstance(module, nn.Conv2d) for module in modules)
    if counts["conv"] != expected:
        raise ExportError(
            f"the saved encoder has {counts['conv']} convolutions in place of {expected}: it is not fused"
        )
    norms = sum(isinstance(module, LayerNorm2d) for module in modules)  # their affine part becomes one, or is folded
    if counts["batch_norm"] > norms:
        raise ExportError(f"the saved encoder has {counts['batch_norm']} batch_norm operations: it is not fused")
    kind = "fp16" if precision == "float16" else "fp32"
    types = program.result_types()["conv"]
    if set(types) - {kind}:
        raise ExportError(f"the saved encoder's convolutions are {dict(types)}, {kind} was asked for")


def check(source: Source, folder: Path, refer: Refer = reference, *, bars: Tolerances | None = None) -> Report:
    """What the saved packages compute in the interpreter, against the JAX model.

    The photo fills the square, so that the pixels are the same on both sides. A row more compares the embedding of one
    that needs padding: Core ML is given whole numbers there, which are not exactly 0 after normalisation.
    """
    encoder, decoder = (mil.MilProgram(folder / f"{name}.mlpackage") for name in ("encoder", "decoder"))
    bars = bars or Tolerances.float32(source.config)
    expected = refer(source, single=True, square=True)
    run = lambda photo: encoder(image=pad(photo, source.config.image_size))[ENCODER_OUTPUT]

    def decode(embedding: np.ndarray, case: PromptCase) -> tuple[np.ndarray, np.ndarray]:
        found = decoder(image_embeddings=embedding, **case.feeds(expected.mask_input))
        return found["low_res_masks"], found["iou_predictions"]

    def encode(expected: Reference) -> np.ndarray:
        return run(expected.photos[0])

    report = verify(expected, "coreml", encode, decode, bars)
    padded = refer(source, cases=False)
    found = run(padded.photos[0]).transpose(0, 2, 3, 1)
    bar = bars.embedding + PADDING_TOLERANCE
    row = compare("coreml", "embedding, padded", found, padded.embeddings, bar)
    return dataclasses.replace(report, rows=(*report.rows, row))


def pad(photo: np.ndarray, image_size: int) -> np.ndarray:
    """Pixels [1, 3, S, S] of a resized photo uint8 [H, W, 3], padded as the encoder package wants it."""
    square = np.empty((image_size, image_size, 3), np.float32)
    square[:] = PADDING
    square[: photo.shape[0], : photo.shape[1]] = photo
    return square.transpose(2, 0, 1)[None]


def summary(folder: Path) -> str:
    """A line about each package: operations and size on disk."""
    lines = []
    for name in ("encoder", "decoder"):
        path = folder / f"{name}.mlpackage"
        counts = mil.MilProgram(path).op_counts()
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shown = ", ".join(
            f"{counts[op]} {op}" for op in ("conv", "gelu", "linear", "matmul", "batch_norm") if counts[op]
        )
        lines.append(f"{path.name}: {size / 1e6:.1f} MB, {counts.total()} operations ({shown})")
    return "\n".join(lines)

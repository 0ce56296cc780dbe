"""Ways to store and run the ONNX files in 8 bits: masks against float32's, size, and time on this CPU."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization as ort

from convert.export.int8 import SEED, SIZE, agreement, round_weights, scene_masks
from convert.export.onnx import export_onnx, predictor_answers, session
from repvit_sam_jax import transforms
from repvit_sam_jax.data.synthetic.scenes import render

Rewrite = Callable[[Path, Path], object]
"""From a float32 file to another; None leaves it."""
RUNS, CALIBRATION = 7, 8
"""Runs of which the fastest is shown; scenes that ranges of activations are taken from."""


def table(weights: Path) -> str:
    """Each way's mean and lowest IoU for boxes and points, its megabytes, and milliseconds of encoder and decoder."""
    lines = [
        "| files | box: mean IoU | lowest | point: mean IoU | lowest | MB | encoder, ms | decoder, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        float32 = Path(temporary) / "float32"
        export_onnx(weights, float32)
        before = list(scene_masks(predictor_answers(float32)))
        for name, (encoder, decoder) in _ways(float32).items():
            folder = Path(temporary) / "other"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for part, rewrite in (("encoder", encoder), ("decoder", decoder)):
                _write(rewrite, float32 / f"{part}.onnx", folder / f"{part}.onnx")
            found = agreement(before, list(scene_masks(predictor_answers(folder))))
            ious = " | ".join(f"{each.mean:.4f} | {each.lowest:.4f}" for each in found)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            times = " | ".join(f"{1e3 * _seconds(folder / f'{part}.onnx'):.0f}" for part in ("encoder", "decoder"))
            lines.append(f"| {name} | {ious} | {size:.1f} | {times} |")
    return "\n".join(lines)


def _ways(float32: Path) -> dict[str, tuple[Rewrite | None, Rewrite | None]]:
    def round_(source: Path, target: Path) -> None:
        model = onnx.load(source)
        round_weights(model)
        onnx.save(model, target)

    def dynamic(source: Path, target: Path) -> None:
        ort.quantize_dynamic(source, target, per_channel=True, weight_type=ort.QuantType.QInt8)

    def dynamic_convolutions(source: Path, target: Path) -> None:
        ort.quantize_dynamic(source, target, op_types_to_quantize=["Conv"], weight_type=ort.QuantType.QUInt8)

    def static(source: Path, target: Path) -> None:
        ort.quantize_static(source, target, _Scenes(source), per_channel=True, op_types_to_quantize=["Conv"])

    return {
        "float32": (None, None),
        "weights int8 (`--int8`)": (round_, round_),
        "weights int8, encoder alone": (round_, None),
        "ONNX Runtime's dynamic, decoder alone": (None, dynamic),
        "ONNX Runtime's dynamic, encoder alone": (dynamic_convolutions, None),
        "ONNX Runtime's static, encoder alone": (static, None),
    }


class _Scenes(ort.CalibrationDataReader):
    """Images of the encoder in `source`."""

    def __init__(self, source: Path) -> None:
        size = session(source).get_inputs()[0].shape[2]
        self._given = self._draw(size)

    def _draw(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        for number in range(CALIBRATION):
            images = transforms.preprocess([render(SEED + 1, number, SIZE).image], size)
            yield {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one; None after the last."""
        return next(self._given, None)


def _write(rewrite: Rewrite | None, source: Path, target: Path) -> None:
    """A file in another way, which keeps what it says about itself."""
    if rewrite is None:
        shutil.copy(source, target)
        return
    rewrite(source, target)
    model = onnx.load(target)
    if not model.metadata_props:  # ONNX Runtime's quantizers drop them
        model.metadata_props.extend(onnx.load(source).metadata_props)
        onnx.save(model, target)


def _seconds(path: Path) -> float:
    """The fastest of several runs, of one image or of one prompt of two points."""
    opened = session(path)
    given: dict[str, Any] = {}
    for each in opened.get_inputs():
        points = each.name.startswith("point")
        shape = [
            side if isinstance(side, int) else (2 if points and i == 1 else 1) for i, side in enumerate(each.shape)
        ]
        given[each.name] = np.ones(shape, np.float32)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        opened.run(None, given)
        times.append(time.perf_counter() - start)
    return min(times)

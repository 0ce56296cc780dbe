"""Ways to store and run the ONNX files in 8 bits: masks against float32's, size, and time on this CPU."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization as ort

from convert.export.int8 import SEED, SIZE, agreement, round_weights, scene_masks
from convert.export.onnx import export_onnx, predictor_answers, session
from repvit_sam_jax import transforms
from repvit_sam_jax.data.synthetic.scenes import render

Rewrite = Callable[[Path, Path], object]
"""From a float32 file to another; None leaves it."""
PARTS = ("encoder", "decoder")
RUNS, CALIBRATION = 15, 8
"""Runs of which the fastest is shown; scenes that ranges of activations are taken from."""


def table(weights: Path) -> str:
    """Each way's mean and lowest IoU for boxes and points, its megabytes, and a core's milliseconds."""
    lines = [
        "| files | box: mean IoU | lowest | point: mean IoU | lowest | MB | encoder, ms | decoder, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        float32 = Path(temporary) / "float32"
        export_onnx(weights, float32)
        before = list(scene_masks(predictor_answers(float32)))
        ways = _ways(float32)
        folders = [Path(temporary) / str(number) for number in range(len(ways))]
        for folder, rewrites in zip(folders, ways.values(), strict=True):
            folder.mkdir()
            for part, rewrite in zip(PARTS, rewrites, strict=True):
                _write(rewrite, float32 / f"{part}.onnx", folder / f"{part}.onnx")
        seconds = _fastest([folder / f"{part}.onnx" for folder in folders for part in PARTS])
        for name, folder, times in zip(ways, folders, seconds.reshape(-1, 2), strict=True):
            found = agreement(before, list(scene_masks(predictor_answers(folder))))
            ious = " | ".join(f"{each.mean:.4f} | {each.lowest:.4f}" for each in found)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            lines.append(f"| {name} | {ious} | {size:.1f} | {1e3 * times[0]:.0f} | {1e3 * times[1]:.0f} |")
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


def _fastest(paths: Sequence[Path]) -> np.ndarray:
    """Seconds of one core for one image or one prompt of two points, the fewest of several runs, which take turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the caller's, whose time other processes do not count in
    providers = ["CPUExecutionProvider"]
    opened = [(one := onnxruntime.InferenceSession(path, options, providers), _given(one)) for path in paths]
    times = np.full((RUNS, len(paths)), np.inf)
    for turn in times:
        for i, (one, given) in enumerate(opened):
            start = time.thread_time()
            one.run(None, given)
            turn[i] = time.thread_time() - start
    return times.min(0)


def _given(opened: Any) -> dict[str, np.ndarray]:
    given: dict[str, np.ndarray] = {}
    for each in opened.get_inputs():
        unknown = [1, 2] if each.name.startswith("point") else [1]
        shape = [side if isinstance(side, int) else unknown[i] for i, side in enumerate(each.shape)]
        given[each.name] = np.ones(shape, np.float32)
    return given

"""ONNX files with weights of 8 bits, whose masks are held against those of float32 before they are handed over.

Weights alone are rounded, each output channel to its own scale; the arithmetic stays float32. ONNX Runtime's own
quantizers, which round activations too, were measured beside it (docs/annotation-tools.md): their masks are further
off, and their encoders slower than float32's.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repvit_sam_jax.data.synthetic.scenes import View, render
from repvit_sam_jax.evals.metrics import iou
from repvit_sam_jax.inference.masks import box_of
from repvit_sam_jax.models.prompt_encoder import BOTTOM_RIGHT, FOREGROUND, TOP_LEFT

from ..report import Agreement, Report
from .gate import passed

LEAST = 1024
"""Values of a tensor that is worth rounding. Smaller ones are hardly any of the file, such as the positional encoding's
matrix, on which all coordinates depend."""
BAR = 0.98
"""Mean IoU that masks must keep, for boxes and for points. Half a pixel all around a thing of 100 x 100 is 0.98; two
people who draw the same thing agree by less."""
SCENES: tuple[tuple[View, int], ...] = (("usual", 0), ("usual", 1), ("outdoors", 0), ("close_up", 0))
"""Views and numbers of the scenes, of a series that nothing is trained on."""
SEED, SIZE, MOST = 20_260_801, (480, 640), 8
"""Of the scenes; and masks of each that are asked for."""

Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Points [N, 2] in pixels of the photo and labels [N], a box as its two corners, to a boolean mask [H, W]."""
Embed = Callable[[np.ndarray], Answer]
"""A photo, uint8 [H, W, 3], to the function that answers prompts on it."""
Named = tuple[str, np.ndarray]
"""Kind of a prompt, and its mask [H, W]."""


def shrink(folder: Path, answers: Callable[[Path], Embed], report: Report, *, allow: bool) -> Report:
    """Round the weights of a folder's ONNX files to 8 bits, and write the agreement of masks into their metadata.

    Args:
      folder: with files that were compared in float32.
      answers: how the files of a folder are asked.
      report: of that comparison.
      allow: let pass masks that agree too little.

    Returns:
      The report with the agreement.

    Raises:
      ExportError: masks agree too little.
    """
    import onnx

    before = list(scene_masks(answers(folder)))
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        round_weights(model)
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        onnx.save(model, path)
    found = agreement(before, list(scene_masks(answers(folder))))
    figures = {each.prompt: {"mean_iou": round(each.mean, 4), "lowest_iou": round(each.lowest, 4)} for each in found}
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        model.metadata_props.add(key="weights", value="int8")
        model.metadata_props.add(key="mask_agreement", value=json.dumps(figures))
        onnx.save(model, path)
    return passed(dataclasses.replace(report, agreement=found), allow)


def round_weights(model: Any) -> None:
    """Store an ONNX model's weights of convolutions and matrix products as int8 with a scale for each output channel.

    A cast and a product make float32 of them, which runtimes do once, when they load the file. `DequantizeLinear` would
    say the same, but makes ONNX Runtime round activations too: it fuses it with the matrix product.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    added: dict[str, list[Any]] = {}
    for node in graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        if (axis := _channel_axis(node)) is None or name not in stored:
            continue
        weight = numpy_helper.to_array(stored[name])
        if weight.size < LEAST or weight.dtype != np.float32:
            continue
        if name not in added:
            values, scale = _to_int8(weight, axis)
            graph.initializer.append(numpy_helper.from_array(values, f"{name}.int8"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            added[name] = [
                helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [f"{name}.rounded"]),
            ]
        node.input[1] = f"{name}.rounded"
    nodes = [*itertools.chain(*added.values()), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _channel_axis(node: Any) -> int | None:
    """The axis of output channels in a node's weight, its second input; None for other nodes."""
    if node.op_type == "Gemm":
        return 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(node.op_type)


def _to_int8(weight: Float[np.ndarray, "..."], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest integers in -127..127, and the scales that they are to be multiplied by, which broadcast."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scale = np.abs(weight).max(others, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), scale


def scene_masks(embed: Embed) -> Iterator[Named]:
    """Answers to a box around and a point in each of the scenes' things."""
    rng = np.random.default_rng(SEED)
    for view, number in SCENES:
        scene = render(SEED, number, SIZE, view=view)
        answer = embed(scene.image)
        for mask in scene.masks[:MOST]:
            corners = np.asarray(box_of(mask), np.float64).reshape(2, 2)
            yield "box", answer(corners, np.array([TOP_LEFT, BOTTOM_RIGHT]))
            y, x = rng.choice(np.argwhere(mask))
            yield "point", answer(np.array([[x, y]], np.float64), np.array([FOREGROUND]))


def agreement(before: Sequence[Named], after: Sequence[Named]) -> tuple[Agreement, ...]:
    """IoUs of masks of the same prompts, by kind of prompt."""
    ious: dict[str, list[float]] = {}
    for (prompt, a), (_, b) in zip(before, after, strict=True):
        ious.setdefault(prompt, []).append(float(iou(a, b)))
    return tuple(
        Agreement(prompt, len(values), float(np.mean(values)), min(values), BAR) for prompt, values in ious.items()
    )

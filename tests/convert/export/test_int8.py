"""Weights of 8 bits: how they are rounded, and the gate that compares masks."""

import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from convert.export import gate, int8  # noqa: E402
from convert.export.verify import ExportError  # noqa: E402
from convert.report import Agreement, Report  # noqa: E402

pytestmark = pytest.mark.torch

WEIGHTS = {
    "conv": (32, 16, 3, 3),
    "depthwise": (32, 1, 7, 7),
    "transposed": (32, 16, 2, 2),
    "gemm": (48, 64),
    "gemm_transposed": (32, 48),
    "matmul": (32, 40),
    "small": (40, 4),
}
"""Channels of very different sizes are along the first axis, except of these."""
COLUMNS = {"transposed", "gemm_transposed", "matmul", "small"}


def layers() -> onnx.ModelProto:
    """Every kind of layer whose weights are rounded, in a chain, with outputs of each."""
    rng = np.random.default_rng(0)
    tensors = []
    for name, shape in WEIGHTS.items():
        weight = rng.normal(size=shape).astype(np.float32)
        scale = 10.0 ** rng.integers(-3, 3, shape[1] if name in COLUMNS else shape[0])
        axis = 1 if name in COLUMNS else 0
        weight *= scale.reshape([-1 if i == axis else 1 for i in range(len(shape))]).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, name))
    nodes = [
        helper.make_node("Conv", ["images", "conv"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "depthwise"], ["b"], group=32, pads=[3, 3, 3, 3]),
        helper.make_node("ConvTranspose", ["b", "transposed"], ["c"], strides=[2, 2]),
        helper.make_node("Gemm", ["rows", "gemm"], ["d"], transB=1),
        helper.make_node("Gemm", ["d", "gemm_transposed"], ["e"], transA=1),
        helper.make_node("MatMul", ["other", "matmul"], ["f"]),
        helper.make_node("MatMul", ["f", "small"], ["g"]),
    ]
    given = {"images": (1, 16, 8, 8), "rows": (32, 64), "other": (5, 32)}
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    outputs = [value(name, [None] * (4 if name in "abc" else 2)) for name in "abcdefg"]
    graph = helper.make_graph(nodes, "g", [value(*each) for each in given.items()], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_each_channel_is_rounded_to_its_own_scale():
    before, model = layers(), layers()
    int8.round_weights(model)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < 0.4 * len(before.SerializeToString())
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert set(stored) == {f"{name}.{part}" for name in WEIGHTS if name != "small" for part in ("int8", "scale")} | {
        "small"
    }
    expose = [f"{name}.rounded" for name in WEIGHTS if name != "small"]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, weights[name.removesuffix(".rounded")].shape)
        for name in expose
    )
    rng = np.random.default_rng(1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {each.name: rng.normal(size=each.shape).astype(np.float32) for each in session.get_inputs()}
    for name, found in zip(expose, session.run(expose, given), strict=True):
        weight = weights[name.removesuffix(".rounded")]
        axes = tuple(i for i in range(weight.ndim) if i != (name.removesuffix(".rounded") in COLUMNS))
        step = np.abs(weight).max(axes, keepdims=True) / 127
        assert (np.abs(found - weight) <= 0.501 * step).all(), name
        assert stored[name.replace("rounded", "int8")].min() >= -127


class Files:
    """A folder whose files answer with a square, which moves when they are written anew."""

    def __init__(self, folder: Path, moves: int) -> None:
        self.folder, self.moves, self.asked = folder, moves, 0
        for part in ("encoder", "decoder"):
            onnx.save(layers(), folder / f"{part}.onnx")

    def answers(self, folder: Path):
        shift, self.asked = self.moves * self.asked, self.asked + 1

        def answer(coords, labels):
            assert tuple(labels) in {(2, 3), (1,)}
            mask = np.zeros(int8.SIZE, bool)
            mask[100:200, 100 + shift : 200 + shift] = True
            return mask

        return lambda photo: answer


@pytest.mark.parametrize(("moves", "passes"), [(0, True), (1, True), (2, False)])
def test_gate(tmp_path, moves, passes):
    """A pixel of a hundred is 99 / 101, two are 98 / 102."""
    files = Files(tmp_path, moves)
    found = Report("tiny", (), ())
    if not passes:
        with pytest.raises(ExportError, match=r"^tiny with int8 weights is past tolerance, mean IoU 0\.9608 .* 0\.98"):
            int8.shrink(tmp_path, files.answers, found, allow=False)
        files = Files(tmp_path, moves)
    report = int8.shrink(tmp_path, files.answers, found, allow=True)
    assert report.passed == passes
    assert {each.prompt for each in report.agreement} == {"box", "point"}
    assert all(each.count >= 15 for each in report.agreement)
    assert report.agreement[0].mean == pytest.approx((100 - moves) / (100 + moves))
    for part in ("encoder", "decoder"):
        about = {each.key: each.value for each in onnx.load(tmp_path / f"{part}.onnx").metadata_props}
        assert about["weights"] == "int8"
        assert json.loads(about["mask_agreement"])["box"]["mean_iou"] == round((100 - moves) / (100 + moves), 4)
    assert ("FAIL" in report.to_text()) != passes
    if not passes:
        gate.write_table(report, tmp_path / "table.md")
        assert "| int8 weights, prompt |" in (tmp_path / "table.md").read_text()


def test_nan_is_no_agreement():
    report = Report("tiny", (), (), agreement=(Agreement("box", 1, float("nan"), 0.0, 0.98),))
    assert not report.passed
    assert "mean IoU nan" in gate.worst(report)

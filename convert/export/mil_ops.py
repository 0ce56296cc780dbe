"""Core ML's operations in PyTorch, as far as the exported models use them.

Values are float32 (also for float16, which `mil` rounds to), int64 or bool tensors; what are constants of an operation,
such as axes, are NumPy arrays, strings and Python numbers. Meanings are those of coremltools' MIL operation reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Inputs = dict[str, Any]
"""Arguments of an operation by name; absent ones are not in it."""


def _ints(value: Any) -> list[int]:
    return [int(v) for v in np.asarray(value).reshape(-1)]


def _convolution_padding(i: Inputs) -> list[int]:
    """Symmetric padding of a convolution: [height, width]."""
    if i.get("pad_type", "valid") == "valid":
        return [0, 0]
    if i["pad_type"] != "custom":
        raise NotImplementedError(f"the interpreter does not know a convolution with pad_type {i['pad_type']}")
    top, bottom, left, right = _ints(i["pad"])
    if (top, left) != (bottom, right):
        raise NotImplementedError(
            f"the interpreter does not know a convolution with uneven padding {(top, bottom, left, right)}"
        )
    return [top, left]


def _conv(i: Inputs) -> Tensor:
    strides, dilations = _ints(i.get("strides", (1, 1))), _ints(i.get("dilations", (1, 1)))
    padding, groups = _convolution_padding(i), int(i.get("groups", 1))
    return functional.conv2d(i["x"], i["weight"], i.get("bias"), strides, padding, dilations, groups)


def _conv_transpose(i: Inputs) -> Tensor:
    strides, groups = _ints(i.get("strides", (1, 1))), int(i.get("groups", 1))
    padding = _convolution_padding(i)
    return functional.conv_transpose2d(i["x"], i["weight"], i.get("bias"), strides, padding, 0, groups)


def _gelu(i: Inputs) -> Tensor:
    mode = str(i.get("mode", "EXACT"))
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise NotImplementedError(f"the interpreter does not know a gelu in mode {mode}")
    return functional.gelu(i["x"], approximate="none" if mode == "EXACT" else "tanh")


def _layer_norm(i: Inputs) -> Tensor:
    axes = _ints(i["axes"])
    shape = [i["x"].shape[axis] for axis in axes]
    assert sorted(axis % i["x"].ndim for axis in axes) == list(range(i["x"].ndim - len(axes), i["x"].ndim))
    return functional.layer_norm(i["x"], shape, i.get("gamma"), i.get("beta"), float(i["epsilon"]))


def _batch_norm(i: Inputs) -> Tensor:
    epsilon = float(i.get("epsilon", 1e-5))
    return functional.batch_norm(i["x"], i["mean"], i["variance"], i.get("gamma"), i.get("beta"), eps=epsilon)


def _matmul(i: Inputs) -> Tensor:
    x, y = i["x"], i["y"]
    return (x.mT if i.get("transpose_x", False) else x) @ (y.mT if i.get("transpose_y", False) else y)


def _slice_by_index(i: Inputs) -> Tensor:
    x = i["x"]
    begin, end, count = _ints(i["begin"]), _ints(i["end"]), x.ndim
    stride = _ints(i["stride"]) if "stride" in i else [1] * count
    masks = [np.asarray(i.get(f"{name}_mask", [False] * count)) for name in ("begin", "end", "squeeze")]
    index: list[Any] = []
    for axis in range(count):
        if masks[2][axis]:
            index.append(begin[axis])
        else:
            first = None if masks[0][axis] else begin[axis]
            last = None if masks[1][axis] else end[axis]
            index.append(slice(first, last, stride[axis]))
    return x[tuple(index)]


def _split(i: Inputs) -> tuple[Tensor, ...]:
    x, axis = i["x"], int(i["axis"])
    if "split_sizes" in i:
        return x.split(_ints(i["split_sizes"]), axis)
    return x.chunk(int(i["num_splits"]), axis)


def _pad(i: Inputs) -> Tensor:
    if i.get("mode", "constant") != "constant":
        raise NotImplementedError(f"the interpreter does not know a pad in mode {i['mode']}")
    pairs = np.asarray(i["pad"]).reshape(-1, 2)[::-1]  # PyTorch wants the last axis first
    return functional.pad(i["x"], _ints(pairs), value=float(i.get("constant_val", 0)))


def _reshape(i: Inputs) -> Tensor:
    shape = _ints(i["shape"])
    return i["x"].reshape([i["x"].shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _gather(i: Inputs) -> Tensor:
    axis, indices = int(i.get("axis", 0)), torch.as_tensor(i["indices"])
    if int(i.get("batch_dims", 0)):
        raise NotImplementedError("the interpreter does not know a gather with batch_dims")
    x = torch.as_tensor(i["x"])
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    return x.index_select(axis, indices.long().reshape(-1)).reshape(*before, *indices.shape, *after)


def _cast(i: Inputs) -> Tensor:
    kind = str(i["dtype"])
    x = torch.as_tensor(i["x"])
    if kind.startswith("fp"):
        return x.float()
    return x.bool() if kind == "bool" else x.trunc().long() if x.is_floating_point() else x.long()


def _einsum(i: Inputs) -> Tensor:
    return torch.einsum(str(i["equation"]), *i["values"])


def _reduce_sum(i: Inputs) -> Tensor:
    return i["x"].sum(_ints(i["axes"]), keepdim=bool(i.get("keep_dims", False)))


def _reduce_mean(i: Inputs) -> Tensor:
    return i["x"].mean(_ints(i["axes"]), keepdim=bool(i.get("keep_dims", False)))


OPS: dict[str, Callable[[Inputs], Tensor | tuple[Tensor, ...]]] = {
    "abs": lambda i: i["x"].abs(),
    "add": lambda i: torch.as_tensor(i["x"]) + i["y"],
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": lambda i: i["x"].clamp(float(i["alpha"]), float(i["beta"])),
    "concat": lambda i: torch.cat([torch.as_tensor(v) for v in i["values"]], int(i["axis"])),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "cos": lambda i: i["x"].cos(),
    "einsum": _einsum,
    "expand_dims": lambda i: _expand_dims(i["x"], _ints(i["axes"])),
    "gather": _gather,
    "gelu": _gelu,
    "greater_equal": lambda i: i["x"] >= i["y"],
    "layer_norm": _layer_norm,
    "linear": lambda i: functional.linear(i["x"], i["weight"], i.get("bias")),
    "matmul": _matmul,
    "mul": lambda i: torch.as_tensor(i["x"]) * i["y"],
    "pad": _pad,
    "real_div": lambda i: torch.as_tensor(i["x"]) / i["y"],
    "reduce_mean": _reduce_mean,
    "reduce_sum": _reduce_sum,
    "relu": lambda i: i["x"].relu(),
    "reshape": _reshape,
    "select": lambda i: torch.where(i["cond"], torch.as_tensor(i["a"]), torch.as_tensor(i["b"])),
    "shape": lambda i: torch.tensor(i["x"].shape),
    "sigmoid": lambda i: i["x"].sigmoid(),
    "sin": lambda i: i["x"].sin(),
    "slice_by_index": _slice_by_index,
    "softmax": lambda i: i["x"].softmax(int(i["axis"])),
    "split": _split,
    "sqrt": lambda i: i["x"].sqrt(),
    "square": lambda i: i["x"].square(),
    "squeeze": lambda i: _squeeze(i["x"], _ints(i["axes"])),
    "stack": lambda i: torch.stack(list(i["values"]), int(i["axis"])),
    "sub": lambda i: torch.as_tensor(i["x"]) - i["y"],
    "tile": lambda i: i["x"].repeat(_ints(i["reps"])),
    "transpose": lambda i: i["x"].permute(_ints(i["perm"])),
}
"""Operation -> what it computes."""


def _expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: list[int]) -> Tensor:
    return x.squeeze(tuple(axes))

"""A saved Core ML package, read back and executed operation by operation, on any system.

Nothing but Apple's systems runs Core ML, so what a package computes is found out here: each operation in float32, its
result rounded to the type that the program declares for it. Core ML may keep more digits in between, and fuses and
orders sums as it likes.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .mil_ops import OPS
from .quiet import import_quietly, quietly


class MilProgram:
    """The main function of an `.mlpackage`.

    Attributes:
      spec: the model's protobuf, with `description` and its metadata.
    """

    def __init__(self, package: Path):
        """Read the package from disk, weights included.

        Raises:
          ValueError: it is no Core ML package, or no ML program.
        """
        ct = import_quietly("coremltools")
        read = import_quietly("coremltools.converters.mil.frontend.milproto.load").load
        with quietly():
            try:
                model = ct.models.MLModel(str(package), skip_model_load=True)
            except Exception as error:  # its errors share no class of their own
                raise ValueError(f"{package} is no Core ML package: {str(error).splitlines()[0]}") from error
            self.spec = model.get_spec()
            if self.spec.WhichOneof("Type") != "mlProgram":
                raise ValueError(f"{package} holds a {self.spec.WhichOneof('Type')}, not an ML program")
            program = read(self.spec, self.spec.specificationVersion, file_weights_dir=model.weights_dir)
        self._function = program.functions["main"]
        self._constants: dict[Any, Any] = {}

    @property
    def metadata(self) -> dict[str, str]:
        """The strings that the exporter stored, coremltools' own left out."""
        stored = self.spec.description.metadata.userDefined
        return {key: stored[key] for key in stored if not key.startswith("com.")}

    def op_counts(self) -> collections.Counter[str]:
        """How often each operation occurs, constants left out; `constexpr` ones unpack compressed weights."""
        return collections.Counter(op.op_type for op in self._function.operations if op.op_type != "const")

    def result_types(self) -> dict[str, collections.Counter[str]]:
        """For each operation, how often its result has which type, such as fp16."""
        found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for op in self._function.operations:
            if op.op_type != "const":
                found[op.op_type][_type_name(op.outputs[0])] += 1
        return found

    @torch.inference_mode()
    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Execute the program.

        Args:
          inputs: by name; an image as its pixels, [1, 3, S, S].

        Returns:
          The outputs by name.

        Raises:
          ValueError: an input is missing or unknown.
          NotImplementedError: the program uses what the interpreter does not know.
        """
        expected = set(self._function.inputs)
        if set(inputs) != expected:
            raise ValueError(f"inputs are {sorted(expected)}, got {sorted(inputs)}")
        known: dict[str, Any] = {
            name: _rounded(torch.tensor(inputs[name]), var) for name, var in self._function.inputs.items()
        }
        last_use = self._last_use()
        for position, op in enumerate(self._function.operations):
            if op.op_type == "const":
                continue
            if op.op_type.startswith("constexpr"):
                continue  # unpacked where it is used
            if op.op_type not in OPS:
                raise NotImplementedError(f"the interpreter does not know the operation {op.op_type} ({op.name})")
            given = {name: self._value(var, known) for name, var in op.inputs.items() if var is not None}
            result = OPS[op.op_type]({name: value for name, value in given.items() if value is not None})
            results = result if isinstance(result, tuple) else (result,)
            for var, value in zip(op.outputs, results, strict=True):
                known[var.name] = _rounded(value, var)
            for name in last_use.get(position, ()):
                del known[name]
        return {var.name: known[var.name].numpy() for var in self._function.outputs}

    def _value(self, var: Any, known: dict[str, Any]) -> Any:
        if isinstance(var, list | tuple):
            return [self._value(item, known) for item in var]
        if var.name in known:
            return known[var.name]
        if var not in self._constants:
            op = var.op
            constant = op.materialized_val_inference() if op.op_type.startswith("constexpr") else var.val
            self._constants[var] = _constant(constant)
        return self._constants[var]

    def _last_use(self) -> dict[int, list[str]]:
        """After which operation a value is needed no more."""
        position: dict[str, int] = {}
        for i, op in enumerate(self._function.operations):
            for var in op.inputs.values():
                for item in var if isinstance(var, list | tuple) else (var,):
                    if item is not None and (item.op is None or not item.op.op_type.startswith("const")):
                        position[item.name] = i
        for var in self._function.outputs:
            position.pop(var.name, None)
        found: dict[int, list[str]] = collections.defaultdict(list)
        for name, i in position.items():
            found[i].append(name)
        return found


def _constant(value: Any) -> Any:
    """Arrays of numbers as tensors, everything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim and np.issubdtype(value.dtype, np.floating):
        return torch.from_numpy(value.astype(np.float32))
    if isinstance(value, np.floating) or (isinstance(value, np.ndarray) and not value.ndim and value.dtype.kind == "f"):
        return float(value)
    return value


def _type_name(var: Any) -> str:
    return str(var.dtype.__name__)


def _rounded(value: Tensor, var: Any) -> Tensor:
    kind = _type_name(var)
    if kind == "fp16":
        return value.half().float()
    return value.float() if kind == "fp32" else value

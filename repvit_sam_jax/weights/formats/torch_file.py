"""PyTorch's zip checkpoints, read without PyTorch: tensors as views of the mapped file, and nothing is executed.

The pickle in such a file is interpreted by a closed list of opcodes. A name that it mentions stays a name: those by
which PyTorch rebuilds tensors and plain containers are known, all others become `Foreign` objects, of which nothing is
asked.
(The format is that of `torch.save`: pytorch/pytorch, `torch/serialization.py` and `torch/_utils.py`.)
"""

from __future__ import annotations

import dataclasses
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..checkpoint import CheckpointError
from .mapped import release_pages

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the pickle, in which a tensor takes some 200."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A name in a pickle: `module.name`."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
    """An object of a class that is not known here."""

    kind: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A record of the file, as the pickle describes it."""

    key: str
    dtype: np.dtype | None
    """None for bytes, whose tensors have types of their own."""
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as the pickle describes it; nothing of this is checked yet."""

    storage: Storage | None
    offset: Any = 0
    shape: Any = ()
    strides: Any = ()
    dtype: np.dtype | None = None
    problem: str = ""
    """Why it is no plain array."""


class TorchFile:
    """The content of a checkpoint."""

    def __init__(self, path: Path) -> None:
        """Read the pickle of a file in PyTorch's zip format.

        Raises:
          CheckpointError: it is damaged, or not of this format.
        """
        self.path = path
        self._checked: set[str] = set()
        try:
            with zipfile.ZipFile(path) as archive:
                self._records = {info.filename: info for info in archive.infolist()}
                self._folder = self._find_folder()
                info = self._record("data.pkl")
                if info.file_size > LARGEST_PICKLE:
                    raise CheckpointError(f"its pickle has {info.file_size} bytes, more than {LARGEST_PICKLE}")
            self._bytes = np.memmap(path, np.uint8, "r")
            order = self._folder + "byteorder"
            self._big = order in self._records and bytes(self._stored(self._record("byteorder"))) == b"big"
            self.root = interpret(bytes(self._stored(info)))
        except PermissionError:
            raise
        except Exception as error:  # zipfile raises many kinds on damaged files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(f"{path} is not a PyTorch checkpoint, or it is truncated ({reason})") from error

    def array(self, tensor: Tensor, name: str) -> np.ndarray:
        """A tensor as a view of the file, in the type that it is stored in.

        Raises:
          CheckpointError: it is no plain array, or reaches beyond its record; its record is damaged or absent.
        """
        try:
            return self._view(tensor)
        except (CheckpointError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: tensor {name}: {error}") from error

    def _view(self, tensor: Tensor) -> np.ndarray:
        if tensor.problem or tensor.storage is None:
            raise CheckpointError(f"it is {tensor.problem}, not a plain array")
        dtype = tensor.dtype or tensor.storage.dtype
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        if dtype is None or any(type(number) is not int or not 0 <= number < 2**48 for number in numbers):
            raise CheckpointError("its description is damaged")
        if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 16:
            raise CheckpointError("its shape and its strides do not fit")
        values = self._values(tensor.storage, dtype)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, dtype.newbyteorder("="))
        if last >= len(values):
            raise CheckpointError(f"it reaches to number {last} of a record of {len(values)}")
        strides = [step * values.itemsize for step in tensor.strides]
        return np.ndarray(tensor.shape, values.dtype, values, tensor.offset * values.itemsize, strides)

    def _values(self, storage: Storage, dtype: np.dtype) -> np.ndarray:
        info = self._record(f"data/{storage.key}")
        size = storage.count * (1 if storage.dtype is None else storage.dtype.itemsize)
        if info.file_size != size:
            raise CheckpointError(f"its record {info.filename} has {info.file_size} bytes, expected {size}")
        values = self._stored(info)[: size - size % dtype.itemsize]
        if self._big:
            unit = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            values = values.view(f">u{unit}").astype(f"u{unit}").view(np.uint8)
        return values.view(dtype)

    def _stored(self, info: zipfile.ZipInfo) -> np.ndarray:
        """A record's bytes, which `torch.save` never compresses."""
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"the record {info.filename} is compressed, which no checkpoint of PyTorch's is")
        header = bytes(self._bytes[info.header_offset : info.header_offset + 30])
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"the record {info.filename} is not where the file says")
        start = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
        )
        if start + info.file_size > len(self._bytes):
            raise CheckpointError(f"the record {info.filename} ends beyond the file")
        stored = np.asarray(self._bytes[start : start + info.file_size])
        if info.filename not in self._checked:
            if zlib.crc32(stored.data) != info.CRC and info.CRC:  # 0 if PyTorch was told to compute none
                raise CheckpointError(f"the record {info.filename} is damaged: its CRC-32 is not the one stored")
            self._checked.add(info.filename)
            release_pages(stored)
        return stored

    def _find_folder(self) -> str:
        """What all records' names begin with. Raises CheckpointError if this is no checkpoint."""
        pickles = [name for name in self._records if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickles) != 1:
            raise CheckpointError(f"a zip file with {len(pickles)} records called data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{folder}code/") for name in self._records):
            raise CheckpointError(
                "a TorchScript program; save its weights alone: torch.save(torch.jit.load(path).state_dict(), path)"
            )
        return folder

    def _record(self, name: str) -> zipfile.ZipInfo:
        if self._folder + name not in self._records:
            raise CheckpointError(f"its record {self._folder + name} is missing")
        return self._records[self._folder + name]


# The pickle


def interpret(pickled: bytes) -> Any:
    """What a pickle describes, without running any of it.

    Raises:
      CheckpointError: it has opcodes or calls that no checkpoint has.
      Exception: of many kinds, on a damaged one.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if opcode.name not in _OPCODES:
            raise CheckpointError(f"its pickle has the opcode {opcode.name}, which is refused")
        _OPCODES[opcode.name](machine, argument)
    raise CheckpointError("its pickle has no end")


class _Machine:
    """The stack, its marks and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def take(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise CheckpointError("its pickle is damaged")
        del self.stack[-count:]
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Foreign):
            raise CheckpointError("its pickle sets items of what is no dict")

    def push_dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise CheckpointError("its pickle appends to what is no list")

    def call(self) -> None:
        function, arguments = self.take(2)
        self.push(_call(function, arguments))

    def load_storage(self) -> None:
        (given,) = self.take(1)
        kind, storage_type, key, _, count = given
        if kind != "storage" or not isinstance(key, str) or type(count) is not int:
            raise CheckpointError("its pickle refers to something that is no storage")
        name = storage_type.name.removeprefix("torch.").removeprefix("storage.")
        if name not in _STORAGES:
            raise CheckpointError(f"its pickle has a storage of an unknown type, {storage_type.name}")
        self.push(Storage(key, _STORAGES[name], count))


def _call(function: Any, arguments: Any) -> Any:
    name = function.name if isinstance(function, Global) else "?"
    if name == "torch._tensor._rebuild_from_type_v2":
        return _call(arguments[0], arguments[2])
    if name in _CALLS:
        return _CALLS[name](*arguments)
    if name in _NO_PLAIN_ARRAYS:
        return Tensor(None, problem=_NO_PLAIN_ARRAYS[name])
    return Foreign(name)


def _tensor(storage: Storage, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("its pickle makes a tensor of what is no storage")
    negated = len(rest) > 2 and isinstance(rest[2], dict) and (rest[2].get("neg") or rest[2].get("conj"))
    return Tensor(storage, offset, shape, strides, problem="a lazily negated or conjugated view" if negated else "")


def _typed_tensor(storage: Storage, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """With a type of its own, for which there is no kind of storage."""
    name = rest[2].name
    plain = _tensor(storage, offset, shape, strides)
    return dataclasses.replace(plain, dtype=_DTYPES.get(name), problem="" if name in _DTYPES else f"of the type {name}")


_STORAGES: dict[str, np.dtype | None] = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "QInt8Storage": np.dtype(np.int8),
    "QUInt8Storage": np.dtype(np.uint8),
    "QInt32Storage": np.dtype(np.int32),
    "UntypedStorage": None,
}
_DTYPES = {
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
}
_NO_PLAIN_ARRAYS = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the device meta, without values",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
}
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "collections.defaultdict": lambda factory=None, pairs=(): dict(pairs),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}

_Opcode = Callable[[_Machine, Any], object]


def _pushing(make: Callable[[], Any]) -> _Opcode:
    return lambda machine, _: machine.push(make())


_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_VALUES = (*_INTEGERS, *_TEXTS, "FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_OPCODES: dict[str, _Opcode] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        _VALUES,
        lambda machine, argument: machine.push(argument),
    ),
    "NONE": _pushing(lambda: None),
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_SET": _pushing(lambda: Foreign("set")),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.take(1),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.push((machine.since_mark(), Foreign("frozenset"))[1]),
    "DICT": lambda machine, _: machine.push_dict(machine.since_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, n: machine.memo.update({n: machine.stack[-1]})),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, n: machine.push(machine.memo[n])),
    "GLOBAL": lambda machine, name: machine.push(Global(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda machine, _: machine.push(Global(".".join(machine.take(2)))),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.take(1),  # an object's state, such as a state dict's versions
    "BINPERSID": lambda machine, _: machine.load_storage(),
}

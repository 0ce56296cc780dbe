"""Parameters on disk: one safetensors file, held against the abstract params of the model that it is for.

Array names are paths joined by slashes; the metadata say which model the file holds, so `load` needs no flags.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..config import Dtype, Form, ModelConfig, config_from_dict
from ..files import check_no_address, write_atomically
from .errors import CheckpointError as CheckpointError
from .formats import safetensors_file
from .formats.mapped import release_pages

FORMAT = "repvit_sam_jax/1"

HALF = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
"""Types of kernels in files that are half as large."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint says about itself.

    Attributes:
      config: the model's, image size included.
      form: `train` or `deploy`.
      source_sha256: hex digest of the file that it was converted from; empty if there was none.
      converter: name and version of the program that wrote it.
      arrays_sha256: hex digest of the arrays, see `digest`; empty in files of version 0.1.
    """

    config: ModelConfig
    form: Form
    source_sha256: str = ""
    converter: str = ""
    arrays_sha256: str = dataclasses.field(default="", compare=False)

    def to_strings(self) -> dict[str, str]:
        """As safetensors stores it; `from_strings` is the inverse."""
        return {
            "format": FORMAT,
            "preset": self.config.name,
            "config": json.dumps(dataclasses.asdict(self.config), sort_keys=True),
            "form": self.form,
            "source_sha256": self.source_sha256,
            "converter": self.converter,
            **({"arrays_sha256": self.arrays_sha256} if self.arrays_sha256 else {}),
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Metadata:
        """Read what `to_strings` wrote; raises CheckpointError for anything else."""
        if strings.get("format") != FORMAT:
            raise CheckpointError(
                f"it was not written by this version of the library, whose files say format={FORMAT!r}, but by another "
                f"program or version: format={strings.get('format')!r}"
            )
        try:
            if strings["form"] not in get_args(Form):
                raise ValueError(f"form is {strings['form']!r}")
            config = config_from_dict(json.loads(strings["config"]))
            rest = strings["source_sha256"], strings["converter"], strings.get("arrays_sha256", "")
            return cls(config, strings["form"], *rest)  # type: ignore[arg-type]
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"its metadata are damaged: {error}") from error


def check_file(path: Path) -> None:
    """Raises CheckpointError for a folder or an address, FileNotFoundError if there is nothing at the path."""
    check_no_address(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint (exports to ONNX are for --runtime onnx)")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path joined by slashes, leaf) of a nested dict."""
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def widen(array: np.ndarray) -> np.ndarray:
    """Floats of other widths as float32: of bfloat16 and float16 exactly, of float64 rounded; others as they are."""
    if array.dtype in HALF or array.dtype == np.float64:
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, which `check` finds
            return array.astype(np.float32)
    return array


def shape_problems(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Missing, unexpected and misshapen arrays, a line each."""
    problems = [f"missing: {k} {tuple(expected[k].shape)}" for k in expected if k not in found]
    problems += [f"unexpected: {k} {tuple(found[k].shape)}" for k in found if k not in expected]
    for key in expected:
        if key in found and tuple(found[key].shape) != tuple(expected[key].shape):
            shapes = f"{tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
            problems.append(f"wrong shape: {key} is {shapes}")
    return problems


def value_problem(name: str, array: np.ndarray, dtype: Any) -> str:
    """What is wrong with an array's type or numbers, in a line; empty if nothing is."""
    if array.dtype != dtype:
        return f"wrong type: {name} is {array.dtype}, expected {dtype}"
    return "" if np.isfinite(array).all() else f"NaN or infinite: {name}"


def raise_for(problems: Sequence[str], what: str) -> None:
    """Raises CheckpointError that lists them, if there are any."""
    if problems:
        listing = "\n  ".join(problems)
        raise CheckpointError(f"{what}: {len(problems)} problem(s)\n  {listing}")


def check(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Hold arrays against the shapes that a model expects.

    Args:
      found: name -> array.
      expected: name -> anything with a `shape`.
      what: what is being checked, for the message.

    Raises:
      CheckpointError: listing every missing, unexpected, misshapen and non-finite array.
    """
    problems = shape_problems(found, expected)
    for key in expected:
        if key in found and tuple(found[key].shape) == tuple(expected[key].shape):
            problems.append(value_problem(key, found[key], expected[key].dtype))
    raise_for([problem for problem in problems if problem], what)


def save(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    metadata: Metadata,
    dtype: Dtype = "float32",
) -> None:
    """Write params and metadata to a safetensors file, all or nothing; the same ones give the same bytes.

    Args:
      path: the file.
      params: a nested dict of arrays.
      metadata: what the file says about them.
      dtype: `bfloat16` rounds float32 arrays of two or more axes to it, for half of the size; others, such as biases
        and BatchNorm's statistics, stay as they are.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flatten(params)}
    if dtype == "bfloat16":
        wide = [name for name, array in arrays.items() if array.ndim >= 2 and array.dtype == np.float32]
        arrays |= {name: arrays[name].astype(ml_dtypes.bfloat16) for name in wide}
    strings = dataclasses.replace(metadata, arrays_sha256=digest(arrays)).to_strings()

    def write(temporary: Path) -> None:
        save_file(arrays, temporary, strings)
        sort_header(temporary)

    try:
        write_atomically(path, write)
    except SafetensorError as error:  # such as a full disk
        raise OSError(f"{path} can't be written: {error}") from error


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays in the order of their names: of name, type and shape as JSON, a zero byte, and the numbers."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        total.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode() + b"\0")
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def sort_header(path: Path) -> None:
    """Order the metadata of a safetensors file, which its library writes in an order that changes from run to run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.dumps(json.loads(file.read(length)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        content = header.encode()
        if len(content) > length:
            raise ValueError("the header has become longer")
        file.seek(8)
        file.write(content.ljust(length))


def read(path: str | os.PathLike, *, verify: bool = False) -> tuple[dict[str, np.ndarray], Metadata]:
    """The arrays of a checkpoint by name, unchecked against any model, and its metadata.

    bfloat16 and float16 are widened to float32, which is exact.

    Args:
      path: the file.
      verify: whether to compare the arrays with the digest in the metadata, which reads them once more.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is not a safetensors file of this library, it is truncated or, if verified, its arrays are not
        those that were written or it has no digest.
    """
    path = Path(path)
    check_file(path)
    try:
        metadata = Metadata.from_strings(safetensors_file.metadata(path))
    except CheckpointError as error:
        named = str(error).startswith(str(path))
        raise CheckpointError(str(error) if named else f"{path} can't be loaded: {error}") from error
    arrays = {}
    for name, view in safetensors_file.read(path).items():
        arrays[name] = np.array(view)
        release_pages(view)
    if verify and not metadata.arrays_sha256:
        raise CheckpointError(f"{path} has no digest of its arrays, as files of version 0.1; convert its source again")
    if verify and (found := digest(arrays)) != metadata.arrays_sha256:
        raise CheckpointError(
            f"{path} is damaged: the SHA-256 of its arrays is {found}, and {metadata.arrays_sha256} was written"
        )
    return {name: widen(array) if array.dtype in HALF else array for name, array in arrays.items()}, metadata

"""The state dict in a PyTorch checkpoint: which of its dicts it is, and what its keys are without what wraps them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import CheckpointError, check_file
from .torch_file import Foreign, Tensor, TorchFile

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Entries that training scripts put a model's state dict under."""

_OFFICIAL = ("image_encoder", "prompt_encoder", "mask_decoder", "features", "classifier")
_TRANSFORMERS, _TIMM = ("vision_encoder", "shared_image_embedding"), ("stem", "stages", "head")
KNOWN = (*_OFFICIAL, *_TRANSFORMERS, *_TIMM)
"""What the keys of models of this library begin with, in the layouts that it reads."""

DEPTH = 4
"""Dicts within dicts in which state dicts are looked for."""


def read_state_dict(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in PyTorch's zip format, as views of the file in the types that they have there.

    Looks through the dicts that training scripts wrap a state dict in. Nothing but tensors and plain containers is ever
    unpickled.

    Args:
      path: a `.pt`, `.pth`, `.bin` or `.ckpt` file.
      key: the entry that the state dict is under, such as `ema`, or `ema.module` for one within another.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is no such checkpoint or damaged, holds several state dicts or none, or holds anything but
        plain tensors.
    """
    path = Path(path)
    check_file(path)
    file = TorchFile(path)
    state = choose(file.root, path, key)
    foreign = [f"{name} ({value.kind})" for name, value in state.items() if isinstance(value, Foreign)]
    if foreign:
        raise CheckpointError(
            f"{path} was refused: it holds Python objects besides tensors, which are never unpickled here: "
            f"{_some(foreign)}; save the state_dict alone: torch.save(model.state_dict(), path)"
        )
    others = [f"{name} ({kind_of(value)})" for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path} is not a state dict: it holds more than tensors: {_some(others)}")
    if strange := [f"{name} ({tensor.problem})" for name, tensor in state.items() if tensor.problem]:
        raise CheckpointError(f"{path} holds tensors that are not plain arrays: {_some(strange)}")
    return {name: file.array(tensor, name) for name, tensor in state.items()}


def choose(root: Any, path: Path, key: str | None = None) -> Mapping[str, Any]:
    """The dict that is the state dict. Raises CheckpointError if there is none, or several."""
    if key is not None:
        return _entry(root, path, key)
    while isinstance(root, Mapping):
        inner = [root[name] for name in WRAPPERS if isinstance(root.get(name), Mapping)]
        if not inner:
            break
        root = next((value for value in inner if any(isinstance(v, Tensor) for v in value.values())), inner[0])
    if not isinstance(root, Mapping):
        kind = kind_of(root)
        raise CheckpointError(
            f"{path} holds {'an' if kind[0] in 'aeiou' else 'a'} {kind}, not a state dict"
            + ("; save its weights alone: torch.save(model.state_dict(), path)" if isinstance(root, Foreign) else "")
        )
    if not any(isinstance(value, Tensor) for value in root.values()):
        nested = dict(_state_dicts(root))
        if len(nested) > 1:
            raise CheckpointError(f"{path} holds several state dicts: {_some(nested)}; choose one with --key")
        root = next(iter(nested.values()), root)
    if not all(isinstance(name, str) for name in root):
        raise CheckpointError(f"{path} holds a dict, not a state dict: its keys are no names")
    return root


def _entry(root: Any, path: Path, key: str) -> Mapping[str, Any]:
    nested = dict(_state_dicts(root))
    if key not in nested:
        raise CheckpointError(f"{path} has no state dict {key!r}; it holds {_some(nested) or 'none within another'}")
    return nested[key]


def _state_dicts(root: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dicts of tensors within dicts, by the path of their names; what is there twice comes once."""
    seen: set[int] = set()
    level = [("", root)]
    for _ in range(DEPTH):
        following = []
        for path, node in level:
            for name, value in node.items() if isinstance(node, Mapping) else ():
                if not isinstance(name, str) or not isinstance(value, Mapping) or id(value) in seen:
                    continue
                seen.add(id(value))
                inner = f"{path}.{name}" if path else name
                if value and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in value.items()):
                    yield inner, value
                else:
                    following.append((inner, value))
        level = following


def without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without the components that all of them begin with, until a known one, and without those of wrappers.

    Lightning and `DataParallel` put a name in front of all, `torch.compile` puts `_orig_mod` in front of a module's
    names wherever the module is, and `AveragedModel` counts in `n_averaged`.
    """
    if any(key.startswith("module.") for key in state):
        state = {key: value for key, value in state.items() if key != "n_averaged"}
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while plain:
        first, others = (lambda names: (names[0], set(names)))([key.partition(".")[0] for key in plain])
        if len(others) > 1 or first in KNOWN or not all("." in key for key in plain):
            break
        plain = {key.partition(".")[2]: value for key, value in plain.items()}
    return plain


def kind_of(value: Any) -> str:
    """What an error calls an object of a pickle."""
    return value.kind if isinstance(value, Foreign) else type(value).__name__


def _some(names: Any) -> str:
    """The first of them, so that a message has an end."""
    listed = list(names)
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")

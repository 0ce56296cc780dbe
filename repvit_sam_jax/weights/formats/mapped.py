"""Arrays that are views of mapped files."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def owned(array: np.ndarray) -> np.ndarray:
    """The array, copied if it is a view of a mapped file: whoever writes to the file would change it, or crash."""
    return array if _mapping(array) is None else np.array(array)


def release_pages(array: np.ndarray) -> None:
    """Let the system take back the memory of an array that is a view of a mapped file; read again, it comes back."""
    mapped = _mapping(array)
    if mapped is None or not hasattr(mapped, "madvise"):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    first, last = -(-(low - start) // mmap.PAGESIZE) * mmap.PAGESIZE, (high - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapping(array: np.ndarray) -> Any:
    """The map that an array is a view of, or None."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
        owner = owner.base
    return getattr(owner, "_mmap", None)

"""Packages that a command needs beyond the library's own, and the extra that brings them."""

from __future__ import annotations

import importlib.util

OPTIONAL = ("torch", "pooch", "requests", "coremltools", "onnx", "onnxscript", "onnxruntime", "litert_torch")
"""What extras bring and modules of this package import."""
EXTRAS = {"onnx": "export", "coreml": "export", "coreml-bench": "export", "litert": "litert"}
"""By command; `convert` has what the others need."""


def require(*packages: str, extra: str = "export") -> None:
    """Raises ValueError, with the extra to install, if a package is missing."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(missing(absent, extra))


def missing(packages: list[str], extra: str) -> str:
    """The line that names the remedy."""
    return (
        f"{', '.join(packages)} not installed; this needs an extra: pip install 'repvit-sam-jax[{extra}]' "
        f"(in a checkout: pip install -e '.[{extra}]')"
    )

"""How tests are compiled, grouped and skipped; and the tiny preset, with BatchNorm statistics far from (0, 1)."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
from pathlib import Path

from tests.helpers import flags

# Most of the time is XLA's. A program is compiled once: for this process, those beside it, those that they start, and
# the next run. `recorded_compilations` counts a program that the cache has like any other.
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    **flags.environment(),
}

import jax
import numpy as np
import pytest

from repvit_sam_jax import PRESETS, Sam
from repvit_sam_jax.weights import checkpoint, loading, reparam
from tests.helpers import models
from tests.helpers.models import random_params

jax.config.update("jax_default_matmul_precision", "highest")
models.register()

GROUPS = ("models", "export", "train", "use", "tpu", "mutants")
"""Groups of slow tests: `make test-slow GROUP=export` runs those marked `slow(group="export")`."""

LONGEST = ("test_tpu_aot.py", "test_golden.py")
"""Files that one worker begins with; those of training are the others."""

HAS_TORCH = importlib.util.find_spec("torch") is not None

ALL_OF_IT_NEEDS_TORCH = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.torch\b", re.MULTILINE)


class ModuleWithoutTorch(pytest.Module):
    """A module that can't be imported here, for its first lines import torch."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("torch is not installed")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Where torch is not installed, modules that are marked `torch` as a whole are skipped as a whole."""
    if HAS_TORCH or not ALL_OF_IT_NEEDS_TORCH.search(module_path.read_text()):
        return None
    return ModuleWithoutTorch.from_parent(parent, path=module_path)


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's way, and let it look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the groups of slow tests, skip single tests that need torch, and begin with the longest files.

    So at the end of a parallel run no worker waits long for the other.
    """
    for item in items:
        for mark in item.iter_markers("slow"):
            if mark.kwargs.get("group") not in GROUPS:
                raise pytest.UsageError(f"{item.nodeid}: slow needs group=, one of {', '.join(GROUPS)}")
        if not HAS_TORCH and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="torch is not installed"))
    items.sort(key=lambda item: "train" not in item.path.parts and item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tiny_train() -> tuple[Sam, dict]:
    model = Sam(PRESETS["tiny"], "train")
    return model, random_params(model)


@pytest.fixture(scope="session")
def tiny(tiny_train) -> tuple[Sam, dict]:
    """The fused form of `tiny_train`."""
    return Sam(PRESETS["tiny"], "deploy"), reparam.fuse(tiny_train[1])


@pytest.fixture
def demo(tiny_train, tmp_path_factory, monkeypatch):
    """`tiny_train` in place of the demonstration model, and an empty working folder."""
    folder = tmp_path_factory.mktemp("package")
    checkpoint.save(
        folder / "demo.safetensors", tiny_train[1], checkpoint.Metadata(PRESETS["tiny"], "train"), "bfloat16"
    )
    monkeypatch.setattr(loading, "DEMO", folder / "demo.safetensors")
    monkeypatch.chdir(tmp_path_factory.mktemp("working"))
    return folder / "demo.safetensors"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

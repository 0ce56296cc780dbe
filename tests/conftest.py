"""Shared fixtures: the tiny preset with weights whose BatchNorm statistics are far from (0, 1)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Most of the time is XLA's. A program is compiled once: for this process, those beside it, those that they start, and
# the next run. `recorded_compilations` counts a program that the cache has like any other.
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

import jax
import numpy as np
import pytest

from repvit_sam_jax import PRESETS, Sam, checkpoint, loading, reparam

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with the longest files first, so that at the end of a parallel run no worker waits long for the other."""
    first = {"train": 0, "tests": 1}
    items.sort(key=lambda item: first.get(item.path.parent.name, 2))


# NPROC: on few cores simulated devices deadlock without a larger thread pool.
EIGHT_DEVICES = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
    "NPROC": "32",
}
"""Environment of a process that simulates eight devices."""


def run_python(program: str, environment: dict[str, str]) -> list[str]:
    """What a program prints in a process of its own, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def random_params(model: Sam, seed: int = 0) -> dict:
    """Params in which every leaf is random, running variances positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "count":
            return np.int32(rng.integers(1, 1000))
        if name == "var":
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        if name == "scale":
            return rng.uniform(0.4, 1.2, leaf.shape).astype(np.float32)
        if name == "kernel":
            fan_in = max(1, int(np.prod(leaf.shape[:-1])))
            return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract_params())


@pytest.fixture(scope="session")
def tiny_train() -> tuple[Sam, dict]:
    model = Sam(PRESETS["tiny"], "train")
    return model, random_params(model)


@pytest.fixture(scope="session")
def tiny(tiny_train) -> tuple[Sam, dict]:
    """The fused form of `tiny_train`."""
    return Sam(PRESETS["tiny"], "deploy"), reparam.fuse(tiny_train[1])


def tiny_with(**decoder: int) -> tuple[Sam, dict]:
    """Like `tiny`, with these fields of its decoder's config."""
    model = Sam(
        dataclasses.replace(PRESETS["tiny"], mask_decoder=dataclasses.replace(PRESETS["tiny"].mask_decoder, **decoder)),
        "train",
    )
    return Sam(model.config), reparam.fuse(random_params(model))


@pytest.fixture(scope="session")
def tiny_drawing() -> tuple[Sam, dict]:
    """Like `tiny`, and draws its prompts."""
    return tiny_with(drawing_channels=16)


@pytest.fixture(scope="session")
def tiny_crf() -> tuple[Sam, dict]:
    """Like `tiny`, draws its prompts and has a CRF, as the demonstration model."""
    return tiny_with(drawing_channels=16, crf_channels=4)


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

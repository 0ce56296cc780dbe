"""Sources of a few small photos with masks, in every layout; and the smallest models."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from repvit_sam_jax import config, data
from repvit_sam_jax.data.shards import write_shards
from tests.helpers import micro
from tests.helpers.micro import ENCODER
from tests.helpers.programs import recorded_compilations
from tests.helpers.training import PEAK, SAVED_ONCE, WORK
from train import embeddings, loop
from train.loop import Inputs, train
from train.teacher import load_teacher


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with a tar shard of scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_shards(folder, 24, seed=3, size=96)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def micro_models():
    """The presets of `micro`, for as long as a module's tests run."""
    micro.register()
    yield
    for preset in micro.PRESETS:
        del config.MODELS[preset.name]


@pytest.fixture(scope="session")
def inputs(photos):
    return Inputs((photos,))


@pytest.fixture(scope="session")
def whole(inputs, tmp_path_factory):
    """A run without interruption: its folder and its last state."""
    micro.register()  # session fixtures come before `micro_models`
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, jax.device_get(train(ENCODER, run, inputs))


@pytest.fixture(scope="session")
def other(whole, inputs, tmp_path_factory):
    """A run with another seed that logs all it can.

    Its folder, its last state, what was compiled for it, and what the operations of a step were counted of.
    """
    run, counted = tmp_path_factory.mktemp("other") / "run", []
    recipe = dataclasses.replace(SAVED_ONCE, seed=1, log_every=1)
    with recorded_compilations() as compiled, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.flops, "peak", lambda device: PEAK)
        patch.setattr(loop.flops, "step_flops", lambda *about: counted.append(about) or WORK)
        state = jax.device_get(train(recipe, run, inputs, tensorboard=True))
    return run, state, compiled, counted


@pytest.fixture(scope="session")
def teacher():
    micro.register()
    return load_teacher(ENCODER.teacher, 64, "float32")


@pytest.fixture(scope="session")
def cached(teacher, photos, tmp_path_factory):
    """A cache of the teacher's embeddings of `photos`."""
    folder = tmp_path_factory.mktemp("embeddings") / "cache"
    embeddings.embed(folder, teacher, data.open_source((photos,)), 8)
    return folder

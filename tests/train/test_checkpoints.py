"""Checkpoints on a disk that is full."""

import dataclasses
import gc
import resource

import chex
import jax
import jax.numpy as jnp
import pytest

from train import state
from train.checkpoints import Checkpoints
from train.optim import make_optimizer

from .micro import ENCODER


@pytest.fixture
def leftovers():
    """What Orbax leaves of a failed write warns when it is collected: here, and not in a later test."""
    yield
    gc.collect()


@pytest.mark.usefixtures("leftovers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path, before):
    """A limit on the size of files stands for the end of the disk: writes fail in the same place."""
    student = state.make_student(ENCODER)
    start = state.create(ENCODER, jax.jit(student.init)(jax.random.key(0)), make_optimizer(ENCODER, 8))
    at = lambda step: dataclasses.replace(start, step=jnp.asarray(step, jnp.int32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, write=True) as checkpoints:
        if before:
            checkpoints.save(at(3))
            checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
        try:
            checkpoints.save(at(6))
            left = "the last complete one is of step 3" if before else "none is complete"
            with pytest.raises(OSError, match=rf"step 6 could not be written to (?s:.*)\. Of this run {left}"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == (3 if before else None)
        if before:
            chex.assert_trees_all_equal(checkpoints.restore(start), at(3))

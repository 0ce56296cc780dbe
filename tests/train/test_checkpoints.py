"""Which checkpoints there are, and what is left when the disk is full."""

import dataclasses
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import chex
import jax
import jax.numpy as jnp
import pytest

from tests.helpers import micro
from train import state
from train.checkpoints import Checkpoints
from train.optim import make_optimizer


def test_the_best_is_the_one_with_the_highest_score(tmp_path):
    """Of those that are kept; one without a score is not asked."""
    start = state.create(micro.ENCODER, {"image_encoder": {"bias": jnp.ones(2)}}, make_optimizer(micro.ENCODER, 8))
    with Checkpoints(tmp_path, write=True) as checkpoints:
        assert checkpoints.best is None
        for step, score in ((1, 0.5), (2, 0.75), (3, 0.25), (4, None)):
            checkpoints.save(dataclasses.replace(start, step=jnp.asarray(step, jnp.int32)), score)
        checkpoints.wait()
        assert (checkpoints.best, checkpoints.latest) == (2, 4)


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path):
    """In a process of its own: Orbax's threads and coroutines of a failed write warn whenever they are collected."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for before in (False, True):
            pool.submit(write_until_full, tmp_path / str(before), before).result()


def write_until_full(folder, before):
    """A limit on the size of files stands for the end of the disk: writes fail in the same place."""
    params = {"image_encoder": {"kernel": jax.random.normal(jax.random.key(0), (100, 200)), "bias": jnp.ones(200)}}
    start = state.create(micro.ENCODER, params, make_optimizer(micro.ENCODER, 8))
    at = lambda step: dataclasses.replace(start, step=jnp.asarray(step, jnp.int32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(folder, write=True) as checkpoints:
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
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest == (3 if before else None)
        if before:
            chex.assert_trees_all_equal(checkpoints.restore(start), at(3))

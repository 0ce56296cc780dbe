"""Batches on devices: in order, ahead but not far, errors when their turn comes, and no thread left behind."""

import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from repvit_sam_jax.data import to_device


@pytest.fixture(params=["one device", "a mesh"])
def sharding(request):
    if request.param == "one device":
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("to-device")]


class Numbers:
    """Batches of their own number, counted; after `fail_at`, an error."""

    def __init__(self, count, fail_at=None):
        self.count, self.fail_at, self.given, self.closed = count, fail_at, 0, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self.fail_at:
            raise ValueError("damaged")
        if self.given == self.count:
            raise StopIteration
        self.given += 1
        return {"x": np.full((2, 3), self.given - 1), "image": np.full((2, 4, 4, 3), self.given - 1, np.uint8)}

    def close(self):
        self.closed = True


def test_all_batches_in_order(sharding):
    numbers = Numbers(7)
    found = list(to_device(numbers, sharding))
    assert [int(batch["x"][0, 0]) for batch in found] == list(range(7))
    for batch in found:
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (2, 4, 4, 3)
        assert batch["image"].sharding.is_equivalent_to(sharding, 4)
    assert numbers.closed
    assert threads() == []
    assert list(to_device(Numbers(0), sharding)) == []


@pytest.mark.parametrize("ahead", [1, 3])
def test_ahead_is_bounded(sharding, ahead):
    numbers = Numbers(20)
    batches = to_device(numbers, sharding, ahead)
    for taken in range(1, 10):
        next(batches)
        assert numbers.given <= taken + ahead
    batches.close()
    assert numbers.closed
    assert threads() == []


def test_errors_come_in_their_turn(sharding):
    batches = to_device(Numbers(9, fail_at=2), sharding)
    assert [int(next(batches)["x"][0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="damaged"):
        next(batches)
    assert threads() == []
    with pytest.raises(StopIteration):
        next(batches)


def test_forgotten_iterators_end_their_thread(sharding):
    batches = to_device(Numbers(9), sharding)
    next(batches)
    assert len(threads()) == 1
    del batches
    assert threads() == []


def test_a_batch_that_does_not_fit_the_devices():
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec(None, "data", None))
    with pytest.raises(ValueError, match="rank"):
        next(to_device(iter([{"x": np.zeros(3)}]), sharding))
    assert threads() == []

"""Batches from the host onto devices, ahead of the program that uses them."""

from __future__ import annotations

import collections
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

Batch = dict[str, jax.Array]


def to_device(
    batches: Iterator[Mapping[str, np.ndarray]], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Generator[Batch, None, None]:
    """Batches as global arrays, in order.

    A thread takes batches and starts their transfer, so that `ahead` of them wait on the devices besides the one that
    was given out. An error of `batches` is raised here, when its turn has come. The thread ends when the batches do,
    with `close()`, and when the generator is collected; then `batches` is closed too, if it can be.

    Args:
      batches: this process's part of each batch.
      sharding: of the leading axis over the devices of all processes.
      ahead: batches, 1 or more.
    """

    def put() -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    pool = ThreadPoolExecutor(1, thread_name_prefix="to-device")
    try:
        waiting: collections.deque[Future[Batch | None]] = collections.deque(pool.submit(put) for _ in range(ahead))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(put))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        if hasattr(batches, "close"):
            batches.close()

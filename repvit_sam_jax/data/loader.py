"""Batches of examples: shuffled without end for training, or once in order; the same for any number of processes."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import grain
import numpy as np
from absl import flags

from .examples import DamagedRecordError, Example, ExampleConfig, NoMasksError, blank_example, make_example
from .sources import Source

MAX_DAMAGED = 100
"""Damaged records in a row that are passed over; one more is an error."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which part of each batch this process reads, and how. What is read does not depend on it."""

    process_index: int = 0
    process_count: int = 1
    threads: int = 4
    """That make examples, in each worker."""
    workers: int = 0
    """Processes that make examples; 0 for this one. They hand examples over through shared memory."""

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index {self.process_index} is none of {self.process_count} processes")
        if self.threads < 1 or self.workers < 0:
            raise ValueError(f"at least one thread and no negative workers, got {self.threads} and {self.workers}")


def batches(
    source: Source,
    config: ExampleConfig,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    reading: Reading = Reading(),
    strict: bool = False,
) -> grain.DatasetIterator[Example]:
    """Batches without end: all records once, in an order that differs from epoch to epoch, then all again.

    Batch b holds the examples b * batch_size and following of an endless sequence that the source, config and seed
    determine, and this process gets its part of them: concatenated over processes, batches are the same for any number
    of processes, threads and workers. A batch may reach from one epoch into the next.

    In place of a damaged record comes the next one of the source that is not; `skipped` says how many were passed over,
    and a warning names each, once a process. Errors of the file system are no damage: they are raised.

    Args:
      source: the records.
      config: what an example holds.
      batch_size: examples of a batch, over all processes.
      seed: of the order, the choice of masks and the flips.
      start: batches that were consumed before, for going on exactly there.
      reading: the part of this process. Besides the batch being made, memory holds 2 * `threads` examples for each
        worker, and one more that is handed over.
      strict: raise for a damaged record.

    Returns:
      an iterator over batches of batch_size / process_count examples, as `make_example` gives them, and besides `index`
      int32, the record that was read, and `skipped` int32. Its `close` ends threads and workers.

    Raises:
      ValueError: batch_size is no multiple of the number of processes, or masks are asked for without a number. While
        iterating: more than `MAX_DAMAGED` records in a row, or all, are damaged.
      DamagedRecordError: while iterating, if `strict`.
    """
    _check(config, batch_size, start, reading)
    reader = _Reader(source, config, strict)
    examples = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(reader.replaced)
    return _iterate(examples, batch_size, start, reading)


def one_pass(
    source: Source,
    config: ExampleConfig,
    batch_size: int,
    *,
    start: int = 0,
    reading: Reading = Reading(),
    strict: bool = False,
) -> grain.DatasetIterator[Example]:
    """All records once, in order, for evaluation and for caches; masks are the first ones, and nothing is flipped.

    All batches have the same size: the last one is filled with examples of zeros whose `index` is -1. So is the place
    of a damaged record (`skipped` is 1), which a warning names; photos without masks end nothing.

    Args and errors as in `batches`.
    """
    _check(config, batch_size, start, reading)
    reader = _Reader(source, config, strict)
    examples = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size).map(reader.in_place)
    return _iterate(examples, batch_size, start, reading)


def _check(config: ExampleConfig, batch_size: int, start: int, reading: Reading) -> None:
    if batch_size < 1 or batch_size % reading.process_count:
        raise ValueError(
            f"batch_size {batch_size} is not divisible by the number of processes, {reading.process_count}"
        )
    if start < 0:
        raise ValueError(f"start must not be negative, got {start}")
    if config.num_masks is None and batch_size > 1:
        raise ValueError("all masks of a photo (num_masks=None) fit no batch: set num_masks, or batch_size to 1")


def _iterate(
    examples: grain.MapDataset, batch_size: int, start: int, reading: Reading
) -> grain.DatasetIterator[Example]:
    share = _Share(examples, batch_size, reading.process_index, reading.process_count)
    ahead = 2 * reading.threads
    own = share[start * share.size :].to_iter_dataset(grain.ReadOptions(reading.threads, ahead))
    if reading.workers:
        if not flags.FLAGS.is_parsed():  # grain asks for a flag of its own before it starts a process
            flags.FLAGS.mark_as_parsed()
        own = own.mp_prefetch(grain.MultiprocessingOptions(reading.workers, per_worker_buffer_size=1))
    return iter(own.batch(share.size))


class _Share(grain.MapDataset):
    """The block of each `batch_size` examples that belongs to a process; a strided slice would permute batches."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, process_index: int, process_count: int) -> None:
        super().__init__(parent)
        self.size = batch_size // process_count
        self._batch_size, self._first = batch_size, self.size * process_index

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self.size

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.slice(i)
        batch, place = divmod(i, self.size)
        return self._parent[batch * self._batch_size + self._first + place]


class _Reader:
    """Examples by the number of their record; picklable."""

    def __init__(self, source: Source, config: ExampleConfig, strict: bool) -> None:
        self._source, self._config, self._strict = source, config, strict
        self._named: set[int] = set()
        self._limit = min(len(source), MAX_DAMAGED + 1)
        self._damaged = 0  # of `in_place`, since the last record that is not

    def replaced(self, number: int, rng: np.random.Generator | None) -> Example:
        """The example of the first record from `number` on that is not damaged."""
        for skipped in range(self._limit):
            at = (number + skipped) % len(self._source)
            try:
                example = make_example(self._source[at], self._config, rng)
                return {**example, "index": np.int32(at), "skipped": np.int32(skipped)}  # type: ignore[dict-item]
            except DamagedRecordError as error:
                self._name(at, error)
                last = str(error)
        raise ValueError(f"{self._limit} records in a row are damaged, the last: {last}")

    def in_place(self, number: int) -> Example:
        """The example of this record, or zeros with the index -1 if it is damaged or past the end."""
        skipped = number < len(self._source)
        if skipped:
            try:
                example = make_example(self._source[number], self._config, None)
                self._damaged = 0
                return {**example, "index": np.int32(number), "skipped": np.int32(0)}  # type: ignore[dict-item]
            except DamagedRecordError as error:
                self._name(number, error)
                self._damaged += not isinstance(error, NoMasksError)
                if self._damaged >= self._limit:
                    raise ValueError(f"{self._limit} records in a row are damaged, the last: {error}") from error
        return {**blank_example(self._config), "index": np.int32(-1), "skipped": np.int32(skipped)}  # type: ignore[dict-item]

    def _name(self, number: int, error: DamagedRecordError) -> None:
        if self._strict:
            raise error
        if number not in self._named:
            self._named.add(number)
            logging.getLogger(__name__).warning("skipped: %s", error)

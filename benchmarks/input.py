"""The input of training alone: photos a second from where they are stored, for numbers of threads and processes."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from repvit_sam_jax import transforms
from repvit_sam_jax.data import (
    ExampleConfig,
    Reading,
    Source,
    batches,
    make_example,
    open_source,
    read_annotations,
    to_device,
)

from .harness import Candidate, interleave

NUM_MASKS = 8
_SAMPLE = 32
"""Photos that each stage is timed on, at most."""


def input_pipeline(data: Sequence[Path], image_size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Time whole batches on the host, for the fastest setting on a device too, and the stages of an example.

    Args:
      data: as `data.open_source` takes it; without masks, examples have none.
      image_size: S.
      batch_size: photos of a batch.
      rounds: timed runs of each setting, in turns. One is eight batches, or as many as hold `_SAMPLE` photos, after the
        first one, so that starting threads and processes is left out.

    Returns:
      a section of the report.
    """
    source = open_source(data)
    config = ExampleConfig(image_size, NUM_MASKS if source[0].annotations else 0)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, 2, cpus})
    settings = {f"{n} thread{'s' * (n > 1)}": Reading(threads=n) for n in counts}
    settings |= {f"{n} process{'es' * (n > 1)}": Reading(threads=1, workers=n) for n in counts}
    per_run = max(8, -(-_SAMPLE // batch_size))

    def rate(reading: Reading, place: Callable[[Any], Any] = lambda batches: batches) -> float:
        with contextlib.closing(place(batches(source, config, batch_size, seed=0, reading=reading))) as found:
            next(found)
            start = time.perf_counter()
            jax.block_until_ready(list(itertools.islice(found, per_run)))
            return per_run * batch_size / (time.perf_counter() - start)

    turns = [{name: rate(reading) for name, reading in settings.items()} for _ in range(rounds)]
    rates = {name: statistics.median(turn[name] for turn in turns) for name in settings}
    best = max(rates, key=lambda name: rates[name])
    place = functools.partial(to_device, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    rates[f"{best}, to a device"] = statistics.median(rate(settings[best], place) for _ in range(rounds))
    stages = interleave(_stages(source, config), rounds)
    notes = [f"{name}: {of['median'] / min(len(source), _SAMPLE):.2f} ms a photo" for name, of in stages.items()]
    notes.append(f"{len(source)} photos, {config.num_masks} masks each, batch {batch_size}")
    return {"table": [{"": name, "photos a second": value} for name, value in rates.items()], "notes": notes}


def _stages(source: Source, config: ExampleConfig) -> list[Candidate]:
    """What an example is made of, one stage after the other on a sample, in one thread."""
    records = [source[i] for i in range(min(len(source), _SAMPLE))]
    photos = [transforms.decode_image(io.BytesIO(record.photo), record.name) for record in records]
    rng = np.random.default_rng(0)

    def each(work: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for i in range(len(records)):
                work(i)

        return run

    found = [
        Candidate("reading", each(lambda i: source[i])),
        Candidate("decoding", each(lambda i: transforms.decode_image(io.BytesIO(records[i].photo), records[i].name))),
        Candidate("resizing", each(lambda i: transforms.resize_longest_side(photos[i], config.image_size))),
        Candidate("whole example", each(lambda i: make_example(records[i], config, rng))),
    ]
    if config.num_masks:
        sizes = [(photo.shape[0], photo.shape[1]) for photo in photos]
        read = each(lambda i: read_annotations(records[i].annotations, sizes[i]))
        found.insert(3, Candidate("reading all masks", read))
    return found

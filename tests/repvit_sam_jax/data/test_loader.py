"""Batches: the same for any number of processes, threads and workers; resumed exactly; damaged records passed over."""

import itertools
import logging
import threading

import numpy as np
import pytest

from repvit_sam_jax.data import DamagedRecordError, ExampleConfig, Reading, batches, loader, one_pass, open_source
from tests.helpers.photos import annotations, jpeg, photo_and_masks, write_tar

CONFIG = ExampleConfig(32, num_masks=2, area_exponent=0.5, flip_probability=0.5)


def take(iterator, count=None):
    """Batches, the iterator closed."""
    found = list(itertools.islice(iterator, count))
    iterator.close()
    return found


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], strict=True, err_msg=name)


def joined(parts):
    """The batches of several processes as those of one."""
    return [
        {name: np.concatenate([batch[name] for batch in batch_parts]) for name in batch_parts[0]}
        for batch_parts in zip(*parts, strict=True)
    ]


@pytest.fixture
def damaged(shards):
    """As `shards`, with photos 3, 4 and 9 cut and the JSON of 12 of another photo."""
    for shard, numbers in enumerate((range(8), range(8, 13))):
        members = {}
        for number in numbers:
            image, masks = photo_and_masks(number)
            cut = 200 if number in (3, 4, 9) else None
            members[f"sa_{number}.jpg"] = jpeg(image)[:cut]
            size = (99, 99) if number == 12 else image.shape[:2]
            members[f"sa_{number}.json"] = annotations(size, *masks)
        write_tar(shards / f"sa_{shard:06d}.tar", members)
    return shards


@pytest.mark.parametrize("folder", ["shards", "damaged"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_reads_the_same_batches(request, folder, count):
    source = open_source(request.getfixturevalue(folder))
    whole = take(batches(source, CONFIG, 4, seed=7, reading=Reading(threads=1)), 8)
    readings = [Reading(i, count, threads=1 + i) for i in range(count)]
    assert_equal(joined([take(batches(source, CONFIG, 4, seed=7, reading=r), 8) for r in readings]), whole)
    passed = take(one_pass(source, CONFIG, 4))
    assert_equal(joined([take(one_pass(source, CONFIG, 4, reading=r)) for r in readings]), passed)


@pytest.mark.slow(group="train")
def test_workers_read_the_same_batches(damaged):
    source = open_source(damaged)
    expected = take(batches(source, CONFIG, 4, seed=7, start=3), 5)
    assert_equal(take(batches(source, CONFIG, 4, seed=7, start=3, reading=Reading(threads=1, workers=2)), 5), expected)


@pytest.mark.parametrize("start", [0, 1, 3, 5, 1000])
def test_resumed_exactly(shards, start):
    """Batches of five over thirteen records reach across epochs."""
    source = open_source(shards)
    before = max(0, start - 5)
    uninterrupted = take(batches(source, CONFIG, 5, seed=3, start=before), start - before + 4)[start - before :]
    assert_equal(take(batches(source, CONFIG, 5, seed=3, start=start), 4), uninterrupted)
    assert_equal(take(one_pass(source, CONFIG, 5, start=start)), take(one_pass(source, CONFIG, 5))[start:])


def test_epochs(shards):
    """All records once an epoch, in orders and with draws that differ from epoch to epoch and from seed to seed."""
    source = open_source(shards)
    orders, areas = [], []
    for seed in (0, 1):
        found = take(batches(source, CONFIG, 13, seed=seed), 3)
        orders += [batch["index"].tolist() for batch in found]
        areas += [dict(zip(batch["index"].tolist(), map(tuple, batch["areas"]), strict=True)) for batch in found]
        assert not any(batch["skipped"].any() for batch in found)
    for order in orders:
        assert sorted(order) == list(range(13))
    assert len(set(map(tuple, orders))) == 6
    assert all(a != b for a, b in itertools.combinations(areas, 2))


def test_damaged_records_are_replaced_and_named_once(damaged, caplog):
    """By the next one of the source; after the last by the first."""
    found = take(batches(open_source(damaged), CONFIG, 13, seed=0, reading=Reading(threads=1)), 2)
    expected = {number: (number, 0) for number in range(13)} | {3: (5, 2), 4: (5, 1), 9: (10, 1), 12: (0, 1)}
    for batch in found:
        read = sorted(zip(batch["index"].tolist(), batch["skipped"].tolist(), strict=True))
        assert read == sorted(expected.values())
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 4
    for number in (3, 4, 9, 12):
        assert sum(f":sa_{number}.jpg" in message for message in messages) == 1


def test_strict_names_the_record(damaged):
    with pytest.raises(DamagedRecordError, match=r"sa_(3|4|9|12)\.jpg"):
        take(batches(open_source(damaged), CONFIG, 13, seed=0, strict=True), 1)
    with pytest.raises(DamagedRecordError, match=r"sa_3\.jpg"):
        take(one_pass(open_source(damaged), CONFIG, 4, strict=True, reading=Reading(threads=1)))


def test_one_pass(damaged):
    """In order, and with zeros in the place of what is damaged and at the end."""
    found = joined([[batch] for batch in take(one_pass(open_source(damaged), CONFIG, 4))])
    whole = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    assert whole["index"].tolist() == [0, 1, 2, -1, -1, 5, 6, 7, 8, -1, 10, 11, -1, -1, -1, -1]
    assert whole["skipped"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    blank = whole["index"] == -1
    for name in ("image", "size", "masks", "boxes", "areas", "valid"):
        assert not whole[name][blank].any()
        assert whole[name][~blank].reshape(9, -1).any(1).all()
    first = photo_and_masks(6)[1][:2]
    assert whole["areas"][6].tolist() == [mask.sum() for mask in first]


@pytest.mark.parametrize("limit", [100, 3])
def test_nothing_but_damage(tmp_path, monkeypatch, limit):
    """Ends in an error, in place of a loop."""
    monkeypatch.setattr(loader, "MAX_DAMAGED", limit)
    write_tar(tmp_path / "bad.tar", {f"sa_{i}.jpg": b"bad" for i in range(10)})
    source = open_source(tmp_path)
    for iterator in (batches(source, ExampleConfig(32), 2, seed=0), one_pass(source, ExampleConfig(32), 2)):
        with pytest.raises(ValueError, match=rf"{min(10, limit + 1)} records in a row are damaged.*bad\.tar"):
            take(iterator)
        iterator.close()


@pytest.mark.parametrize("num_masks", [2, None])
def test_photos_without_masks_are_no_damage(tmp_path, monkeypatch, num_masks):
    """As many in a row as there are, each decoded once, with zeros in their places."""
    monkeypatch.setattr(loader, "MAX_DAMAGED", 3)
    decoded, decode = [], loader.make_example
    monkeypatch.setattr(
        loader, "make_example", lambda record, *rest: (decoded.append(record.name), decode(record, *rest))[1]
    )
    photo, masks = photo_and_masks(0)
    members = {}
    for i in range(10):
        members |= {
            f"sa_{i}.jpg": jpeg(photo),
            f"sa_{i}.json": annotations(photo.shape[:2], *(masks if i == 8 else ())),
        }
    write_tar(tmp_path / "few.tar", members)
    iterator = one_pass(open_source(tmp_path), ExampleConfig(32, num_masks), 1, reading=Reading(threads=1))
    found = take(iterator)
    assert [int(batch["index"][0]) for batch in found] == [-1] * 8 + [8, -1]
    assert [bool(batch["valid"].any()) for batch in found] == [False] * 8 + [True, False]
    own = [name for name in decoded if str(tmp_path) in name]  # threads of the test before may be at work
    assert len(own) == len(set(own)) == 10


def test_file_errors_are_raised(shards):
    source = open_source(shards)
    iterator = one_pass(source, CONFIG, 13)
    (shards / "sa_000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"sa_000001\.tar"):
        next(iterator)
    iterator.close()


def test_bad_arguments(shards):
    source = open_source(shards)
    for make, message in [
        (lambda: batches(source, CONFIG, 6, seed=0, reading=Reading(0, 4)), "batch_size 6 is not divisible by .* 4"),
        (lambda: one_pass(source, CONFIG, 0), "batch_size 0"),
        (lambda: batches(source, CONFIG, 4, seed=0, start=-1), "start must not be negative, got -1"),
        (lambda: one_pass(source, ExampleConfig(32, num_masks=None), 2), "num_masks=None"),
        (lambda: Reading(2, 2), "process_index 2 is none of 2 processes"),
        (lambda: Reading(threads=0), "at least one thread"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    sizes = [len(batch["areas"][0]) for batch in take(one_pass(source, ExampleConfig(32, num_masks=None), 1))]
    assert sizes == [5] * 13


def test_reading_ahead_is_bounded(shards):
    """Records that are read before they are asked for: those that wait, and those that threads are at."""
    source, read, lock = open_source(shards), [], threading.Lock()

    class Counting:
        def __len__(self):
            return len(source)

        def __getitem__(self, i):
            with lock:
                read.append(i)
            return source[i]

    iterator = batches(Counting(), CONFIG, 2, seed=0, reading=Reading(threads=3))
    for given in range(1, 30):
        next(iterator)
        with lock:
            assert len(read) <= 2 * given + 2 * 3
    iterator.close()

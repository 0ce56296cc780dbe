"""The cache of a teacher's embeddings: interrupted, damaged, of another teacher."""

import dataclasses
import os

import numpy as np
import pytest

from repvit_sam_jax import data
from tests.helpers.micro import ENCODER
from train import embeddings
from train.teacher import load_teacher


def test_a_cache_is_made_once(teacher, photos, tmp_path):
    source = data.open_source((photos,))
    counted = []
    assert embeddings.embed(tmp_path, teacher, source, 5, progress=counted.append) == 0
    assert sum(counted) == len(source) == 24
    stamp = [path.stat().st_mtime_ns for path in tmp_path.glob("emb*")]
    embeddings.embed(tmp_path, teacher, source, 5)  # nothing is left to do
    assert stamp == [path.stat().st_mtime_ns for path in tmp_path.glob("emb*")]


def test_interrupted_cache(teacher, photos, tmp_path):
    source = data.open_source((photos,))

    def interrupt(count):
        interrupt.done += count
        if interrupt.done >= 12:
            raise KeyboardInterrupt

    interrupt.done = 0
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embeddings.embed(tmp_path / "cache", teacher, source, 0)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(KeyboardInterrupt):
        embeddings.embed(tmp_path / "cache", teacher, source, 4, progress=interrupt)
    with pytest.raises(ValueError, match="lacks 12 of 24 photos: run embed again"):
        embeddings.EmbeddingCache(tmp_path / "cache", teacher, source)
    rest = []
    embeddings.embed(tmp_path / "cache", teacher, source, 4, progress=rest.append)
    assert rest == [12, 4, 4, 4]
    embeddings.embed(tmp_path / "fresh", teacher, source, 4)
    every = np.arange(24)
    found = [embeddings.EmbeddingCache(tmp_path / name, teacher, source)[every] for name in ("cache", "fresh")]
    np.testing.assert_array_equal(*found)
    for name in ("embeddings-00000.npy", "done.npy"):  # as a copy leaves it that was broken off
        file = tmp_path / "cache" / name
        whole = file.read_bytes()
        for size in (len(whole) - 5, 0):
            os.truncate(file, size)
            with pytest.raises(ValueError, match=rf"{name} is damaged: .*; remove the cache and make it again"):
                embeddings.embed(tmp_path / "cache", teacher, source, 4)
            with pytest.raises(ValueError, match=rf"{name} is damaged"):
                embeddings.EmbeddingCache(tmp_path / "cache", teacher, source)
            assert file.stat().st_size == size
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"identity": "random:other"},
            r"cache of other embeddings.*\n  teacher: 'random:micro_vit', expected 'random:ot",
        ),
        ({"dtype": "bfloat16"}, "dtype: 'float32', expected 'bfloat16'"),
    ],
)
def test_cache_of_another_teacher(teacher, cached, photos, change, message):
    source = data.open_source((photos,))
    if "dtype" in change:
        other = load_teacher(ENCODER.teacher, 64, change["dtype"])
    else:
        other = dataclasses.replace(teacher, **change)
    with pytest.raises(ValueError, match=message):
        embeddings.EmbeddingCache(cached, other, source)
    with pytest.raises(ValueError, match="choose another folder"):
        embeddings.embed(cached, other, source, 8)

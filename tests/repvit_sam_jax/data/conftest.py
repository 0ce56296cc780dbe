"""Shards of small photos with masks."""

import pytest

from tests.helpers.photos import annotations, jpeg, photo_and_masks, write_tar


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards, eight and five photos."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard, numbers in enumerate((range(8), range(8, 13))):
        members = {}
        for number in numbers:
            image, masks = photo_and_masks(number)
            members[f"sa_{number}.jpg"] = jpeg(image)
            members[f"sa_{number}.json"] = annotations(image.shape[:2], *masks)
        write_tar(folder / f"sa_{shard:06d}.tar", members)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where indices of tars in read-only folders go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "repvit-sam"

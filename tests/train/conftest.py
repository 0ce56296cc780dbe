"""Sources of a few small photos with masks, in every layout; and the smallest models."""

from __future__ import annotations

import pytest

from repvit_sam_jax import config
from tests.helpers import micro
from tests.helpers.photos import annotations, jpeg, photo_and_masks, write_tar
from train.shards import write_shards


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

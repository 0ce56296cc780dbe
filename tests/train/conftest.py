"""Photos for training, of our own making."""

import pytest

from train import shards


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with a tar shard of scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    shards.write_shards(folder, 24, seed=3, size=96, workers=1)
    return str(folder)

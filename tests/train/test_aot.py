"""What the compiler ahead of time refuses before it compiles."""

import pytest

from train import aot, tpu
from train.recipe import get_recipe


def test_a_batch_that_the_chips_can_not_share(monkeypatch):
    monkeypatch.setattr(tpu, "devices", lambda topology: [object()] * 16)
    recipe = get_recipe("repvit_sam_paper", ["batch_size=8"])
    with pytest.raises(ValueError, match=r"8 photos a step .* over the 16 chips of v5e:4x4; give --photos-per-chip 1"):
        aot.estimate(recipe, "v5e:4x4")
    with pytest.raises(ValueError, match=r"give --photos-per-chip 2, or --set batch_size="):
        aot.estimate(get_recipe("repvit_sam_paper", ["batch_size=40"]), "v5e:4x4")

"""Operations of the interpreter of Core ML programs, one by one."""

import numpy as np
import pytest
import scipy.stats
import torch

from convert.export import mil_ops

pytestmark = pytest.mark.torch


def test_gelu_is_the_exact_one():
    """With the tanh approximation it would be 5e-4 off, which float16 of a whole model hides."""
    x = np.linspace(-4, 4, 1001)
    found = mil_ops.OPS["gelu"]({"x": torch.from_numpy(x), "mode": "EXACT"})
    np.testing.assert_allclose(found, x * scipy.stats.norm.cdf(x), atol=1e-12)
    with pytest.raises(NotImplementedError, match="gelu in mode SIGMOID"):
        mil_ops.OPS["gelu"]({"x": torch.zeros(1), "mode": "SIGMOID"})

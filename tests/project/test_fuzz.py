"""Some mutants of each kind of input; `python -m tests.fuzz --count 10000` runs more."""

import pytest

from tests.fuzz.kinds import KINDS, run


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_a_few(kind, tmp_path):
    assert_no_faults(run(kind, 20, 1, tmp_path))


@pytest.mark.torch
@pytest.mark.slow(group="use")
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind, tmp_path):
    outcome = run(kind, 500, 0, tmp_path)
    assert_no_faults(outcome)
    assert outcome.right > 5
    assert outcome.refused > 50


def assert_no_faults(outcome):
    assert not outcome.faults, "\n".join(outcome.faults)

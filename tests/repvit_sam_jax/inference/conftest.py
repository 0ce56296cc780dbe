"""Settings of PyTorch for the comparisons with it."""

import pytest


@pytest.fixture(scope="module")
def one_torch_thread():
    """On small arrays, threads that wait for each other on busy cores take a hundred times longer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

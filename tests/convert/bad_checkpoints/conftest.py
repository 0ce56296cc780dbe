"""Good files of the tiny preset, and ways to write variants of them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert import synthetic
from repvit_sam_jax import PRESETS
from repvit_sam_jax.weights import checkpoint

TINY = PRESETS["tiny"]
NORM = "mask_decoder.transformer.norm_final_attn.weight"
LINEAR = "mask_decoder.iou_prediction_head.layers.0.weight"
TOKENS = "mask_decoder.mask_tokens.weight"


@pytest.fixture(scope="module")
def arrays():
    return synthetic.synthetic_state_dict(synthetic.manifest(TINY))


@pytest.fixture
def state(arrays):
    import torch

    return {key: torch.from_numpy(value) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """The same weights in both forms and both formats."""
    import torch

    from convert.from_torch import from_torch
    from convert.to_torch import to_torch

    folder = tmp_path_factory.mktemp("files")
    torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, folder / "train.pt")
    from_torch(folder / "train.pt", folder / "train.safetensors")
    from_torch(folder / "train.pt", folder / "deploy.safetensors", form="deploy")
    to_torch(folder / "deploy.safetensors", folder / "deploy.pt")
    return folder


@pytest.fixture
def convert(tmp_path):
    """Writes an object with torch.save and converts the file; returns the arrays and the metadata."""

    import torch

    from convert.from_torch import from_torch

    def run(content, **options):
        torch.save(content, tmp_path / "source.pt")
        from_torch(tmp_path / "source.pt", tmp_path / "target.safetensors", **options)
        return checkpoint.read(tmp_path / "target.safetensors")

    return run


@pytest.fixture
def rewrite(files, tmp_path):
    """Writes a variant of a good safetensors file."""

    def run(edit=dict, *, source="deploy", **metadata):
        found, about = checkpoint.read(files / f"{source}.safetensors")
        strings = {key: value for key, value in {**about.to_strings(), **metadata}.items() if value is not None}
        save_file(edit(found), tmp_path / "variant.safetensors", strings)
        return tmp_path / "variant.safetensors"

    return run


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)

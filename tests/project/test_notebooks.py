"""Every notebook runs from its first cell to its last, on small models."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from repvit_sam_jax import checkpoint

NOTEBOOKS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))}

pytestmark = pytest.mark.torch


def test_there_are_notebooks():
    assert list(NOTEBOOKS) == ["automatic_mask_generator", "coreml_export", "distillation", "predictor"]


def execute(path, folder):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.mark.filterwarnings("ignore")
def test_distillation_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed = str(
        [cell.outputs for cell in execute(NOTEBOOKS["distillation"], tmp_path / "notebooks").cells if "outputs" in cell]
    )
    assert printed.count("steps done: 30") == 2
    assert "run of another recipe" in printed


@pytest.mark.filterwarnings("ignore")
def test_coreml_export_runs(tmp_path, monkeypatch):
    pytest.importorskip("coremltools")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cells = execute(NOTEBOOKS["coreml_export"], tmp_path / "notebooks").cells
    printed = str([cell.outputs for cell in cells if "outputs" in cell])
    assert "demonstration model" in printed
    assert "demo: 23 of 23 comparisons within tolerance" in printed
    (agreement,) = re.findall(r"agreement with JAX: ([0-9.]+) of the pixels", printed)
    assert float(agreement) > 0.99


@pytest.mark.parametrize("with_weights", [True, pytest.param(False, marks=pytest.mark.slow(group="use"))])
@pytest.mark.parametrize("name", ["automatic_mask_generator", "predictor"])
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(name, with_weights, tiny_train, tmp_path, monkeypatch):
    """With a converted checkpoint where the README puts it, and with the demonstration model."""
    if with_weights:
        metadata = checkpoint.Metadata(tiny_train[0].config, "train")
        checkpoint.save(tmp_path / "weights" / "repvit_sam.safetensors", tiny_train[1], metadata)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = execute(NOTEBOOKS[name], tmp_path / "notebooks")
    printed = "".join(output.get("text", "") for output in notebook.cells[2].outputs)
    assert ("demonstration model" in printed) != with_weights

"""Every notebook runs from its first cell to its last, on small models; that takes a while. What it names is there."""

import ast
import importlib
import inspect
import re

import nbformat
import pytest

from repvit_sam_jax.weights import checkpoint
from tests.helpers.processes import ROOT

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
OURS = ("repvit_sam_jax", "convert", "train", "repvit_sam_jax.evals")


def test_there_are_notebooks():
    assert list(NOTEBOOKS) == ["automatic_mask_generator", "coreml_export", "distillation", "finetune", "predictor"]


def read(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    return notebook


@pytest.mark.torch
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_names_of_this_project_are_there(name):
    """What the cells import of it, and the arguments that they give by name to what they import."""
    code = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    tree = ast.parse("\n".join(line for line in code.split("\n") if not re.match(r"\s*[%!]", line)))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OURS:
                    found[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
            for alias in node.names:
                found[alias.asname or alias.name] = member(importlib.import_module(node.module), alias.name)
    assert found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in found:
            member(found[node.value.id], node.attr)
        if isinstance(node, ast.Call) and callable(called := what(node.func, found)):
            known = inspect.signature(called).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
                assert {keyword.arg for keyword in node.keywords} - {None} <= set(known), ast.unparse(node)


def member(owner, name):
    """An attribute, or a module of a package."""
    if not hasattr(owner, name) and inspect.ismodule(owner):
        return importlib.import_module(f"{owner.__name__}.{name}")
    return getattr(owner, name)


def what(node, found):
    """What an expression is, if it is one of the names or an attribute of one."""
    if isinstance(node, ast.Name):
        return found.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in found:
        return member(found[node.value.id], node.attr)
    return None


def execute(name, folder):
    from nbclient import NotebookClient

    notebook = read(name)
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.mark.torch
@pytest.mark.slow(group="use")
@pytest.mark.filterwarnings("ignore")
def test_distillation_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed = str([cell.outputs for cell in execute("distillation", tmp_path / "notebooks").cells if "outputs" in cell])
    assert printed.count("steps done: 30") == 2
    assert "run of another recipe" in printed


@pytest.mark.slow(group="use")
@pytest.mark.filterwarnings("ignore")
def test_finetune_runs(tmp_path, monkeypatch):
    """And what it says of the demonstration model on cells is true."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed = str([cell.outputs for cell in execute("finetune", tmp_path / "notebooks").cells if "outputs" in cell])
    assert "24 photos to learn from, 6 held out" in printed
    ((before, after),) = re.findall(r"\\n\| box \| ([0-9.]+) \| ([0-9.]+) \|", printed)
    assert float(after) > float(before)


@pytest.mark.torch
@pytest.mark.slow(group="use")
@pytest.mark.filterwarnings("ignore")
def test_coreml_export_runs(tmp_path, monkeypatch):
    pytest.importorskip("coremltools")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cells = execute("coreml_export", tmp_path / "notebooks").cells
    printed = str([cell.outputs for cell in cells if "outputs" in cell])
    assert "demonstration model" in printed
    assert "demo: 23 of 23 comparisons within tolerance" in printed
    (agreement,) = re.findall(r"agreement with JAX: ([0-9.]+) of the pixels", printed)
    assert float(agreement) > 0.99


@pytest.mark.torch
@pytest.mark.slow(group="use")
@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize("name", ["automatic_mask_generator", "predictor"])
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(name, with_weights, tiny_train, tmp_path, monkeypatch):
    """With a converted checkpoint where the README puts it, and with the demonstration model."""
    if with_weights:
        metadata = checkpoint.Metadata(tiny_train[0].config, "train")
        checkpoint.save(tmp_path / "weights" / "repvit_sam.safetensors", tiny_train[1], metadata)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = execute(name, tmp_path / "notebooks")
    printed = "".join(output.get("text", "") for output in notebook.cells[2].outputs)
    assert ("demonstration model" in printed) != with_weights

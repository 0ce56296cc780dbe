"""Imports go one way. Read from the source (AST), so that imports inside functions count too."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "repvit_sam_jax"

ROOMS = (
    {"config", "files", "terminal"},
    {"parts", "transforms", "ops"},
    {"models"},
    {"weights"},
    {"inference"},
    {"data"},
    {"evals"},
    {"app", "cli"},
)
"""Folders and modules of the library; each imports those before it and itself. The names at its root come from all."""

FOLDERS = {
    "repvit_sam_jax": set(),
    "convert": {"repvit_sam_jax"},
    "train": {"repvit_sam_jax"},
    "benchmarks": {"repvit_sam_jax", "convert", "train"},
    "experiments": {"repvit_sam_jax", "convert", "train"},
}
"""Folders of the project, and the others that each imports. `repvit_sam_jax.cli` starts others by name."""


def imported(path: Path) -> set[str]:
    """Absolute names of what a file imports, relative imports resolved."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("repvit_sam_jax"), ids=lambda path: path.name)
def test_library_imports_no_training_or_conversion_package(path):
    heavy = {"torch", "optax", "orbax", "tensorflow", "skimage", "matplotlib"}
    if path.name == "edges.py":  # whose thinning comes with the extra `eval`, inside the function
        heavy -= {"skimage"}
    assert not {name.split(".")[0] for name in imported(path)} & heavy


@pytest.mark.parametrize("folder", list(FOLDERS))
def test_folders_import_downwards(folder):
    for path in files(folder):
        used = {name.split(".")[0] for name in imported(path)} & set(FOLDERS)
        assert used <= FOLDERS[folder] | {folder}, path


def test_rooms_of_the_library_import_downwards():
    level = {name: i for i, names in enumerate(ROOMS) for name in names}
    for path in files("repvit_sam_jax"):
        room = path.relative_to(LIBRARY).with_suffix("").parts[0]
        if room in ("__init__", "_moved"):
            continue
        assert room in level, f"{path} is in no room"
        for name in imported(path):
            parts = name.split(".")
            other = parts[1] if parts[0] == "repvit_sam_jax" and len(parts) > 1 else room
            assert other == room or level.get(other, -1) < level[room], f"{path} imports {name}"


@pytest.mark.parametrize("folder", list(FOLDERS))
def test_no_module_imports_itself_by_a_detour(folder):
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files(folder)
    }
    # A package's __init__ stands for what it offers: whoever imports from within the package does not need it.
    graph = {name: (imported(path) & set(modules)) - {name} for name, path in modules.items()}
    graph = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph.items()}
    while leaves := [name for name, others in graph.items() if not others & set(graph)]:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


def test_torch_stays_in_convert_benchmarks_and_tests():
    allowed = {ROOT / "benchmarks" / name for name in ("rivals.py", "plain_generator.py")}
    for folder in ("repvit_sam_jax", "train", "benchmarks", "experiments"):
        for path in files(folder):
            assert path in allowed or "torch" not in {name.split(".")[0] for name in imported(path)}, path


def test_no_test_module_imports_another():
    for path in files("tests"):
        assert not [name for name in imported(path) if re.match(r"tests\..*\btest_", name)], path

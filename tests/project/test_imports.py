"""Imports go one way. Read from the source (AST), so that imports inside functions count too."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "repvit_sam_jax"

# Each module may import modules of earlier levels only (or of its own, where they are one idea).
LEVELS = [
    {"config"},
    {"layers", "reparam", "checkpoint", "transforms", "overlay"},
    {"encoders.blocks", "prompt_encoder", "transformer"},
    {"encoders.repvit", "encoders.vit", "model"},
    {"encoders.tiny_vit", "classifier"},
    {"mask_decoder", "prompts", "masks"},
    {"sam", "inference.refine"},
    {"loading"},
    {"predictor"},
    {"mask_generator", "photos", "runtimes.onnx"},
    {"cli.common"},
    {"cli.segment", "cli.everything", "cli.classify"},
    {"cli.__main__"},
]
FOLDERS = {
    "repvit_sam_jax": set(),
    "convert": {"repvit_sam_jax"},
    "evals": {"repvit_sam_jax"},
    "train": {"repvit_sam_jax", "evals"},
    "benchmarks": {"repvit_sam_jax", "convert", "train", "evals"},
}
ENTRIES = {"evals/__main__.py": {"train"}}
"""Commands, which nothing imports, and what they may import besides: photos are read by `train.data`."""


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
    assert not {name.split(".")[0] for name in imported(path)} & heavy


@pytest.mark.parametrize("folder", list(FOLDERS))
def test_folders_import_downwards(folder):
    for path in files(folder):
        used = {name.split(".")[0] for name in imported(path)} & set(FOLDERS)
        assert used <= FOLDERS[folder] | {folder} | ENTRIES.get(str(path.relative_to(ROOT)), set()), path


def test_modules_of_the_library_import_downwards():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    found = {".".join(path.relative_to(LIBRARY).with_suffix("").parts): path for path in files("repvit_sam_jax")}
    modules = {name: path for name, path in found.items() if not name.endswith("__init__")}
    assert set(modules) == set(level), "a module without a level, or a level without a module"
    for name, path in modules.items():
        names = imported(path)
        for other in level:
            if f"repvit_sam_jax.{other}" in names:
                assert level[other] < level[name], f"{name} imports {other}"


def test_torch_stays_in_convert_benchmarks_and_tests():
    allowed = {ROOT / "benchmarks" / name for name in ("rivals.py", "plain_generator.py")}
    for folder in ("repvit_sam_jax", "train", "evals", "benchmarks"):
        for path in files(folder):
            assert path in allowed or "torch" not in {name.split(".")[0] for name in imported(path)}, path


def test_no_test_module_imports_another():
    for path in files("tests"):
        assert not [name for name in imported(path) if re.match(r"tests\..*\btest_", name)], path

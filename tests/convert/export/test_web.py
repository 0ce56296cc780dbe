"""The page's files, its unit tests, and where its runtime comes from. `test_page.py` runs it in a browser."""

import json
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from convert import __main__ as command
from convert.export import web
from repvit_sam_jax.weights.hub import OFFLINE
from tests.helpers import page_golden

pytestmark = pytest.mark.torch

SITE = web.PAGE / "site"


@pytest.fixture
def runtime(tmp_path):
    """A folder with names of the runtime's files."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in web.RUNTIME:
        (folder / name).write_text(name)
    return folder


def test_what_the_page_must_compute_is_what_python_does():
    assert page_golden.read() == json.loads(json.dumps(page_golden.golden()))


def test_unit_tests_of_the_page():
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed: apt-get install nodejs")
    tests = sorted(str(path) for path in (web.PAGE / "tests").glob("*.test.js"))
    done = subprocess.run([node, "--test", *tests], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_file_that_the_page_names_is_there():
    """And none is there that nothing names."""
    named = {"index.html"}
    for path in SITE.iterdir():
        text = path.read_text()
        named |= set(re.findall(r'(?:from|import|href=|src=|register\(|URL\()\s*"(?:\./)?([\w.-]+\.(?:js|css))"', text))
    assert named == {path.name for path in SITE.iterdir()}


def test_page_asks_nothing_of_other_hosts():
    for path in SITE.iterdir():
        addresses = set(re.findall(r"https?://[\w.:-]+", path.read_text())) - {
            "http://www.w3.org",
            "http://localhost:8000",
        }
        assert not addresses, path


def test_runtime_is_pinned():
    version, integrity = web.pinned()
    assert json.loads((web.PAGE / "package.json").read_text())["dependencies"][web.PACKAGE] == version
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", integrity)


NPM = """#!/bin/sh
{}
"""


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        ("echo connection refused >&2; exit 1", "could not be fetched by npm (connection refused)"),
        ('echo another > "$4/package.tgz"', "its hash differs"),
        (None, "npm, which is not installed"),
        ("offline", f"{OFFLINE} is set"),
    ],
    ids=["unreachable", "another", "no npm", "offline"],
)
def test_no_runtime_in_one_line(shallow, tmp_path, monkeypatch, capsys, npm, reason):
    """Before anything is exported."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if npm is not None:
        (programs / "npm").write_text(NPM.format(npm))
        (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv(OFFLINE, "1" if npm == "offline" else "0")
    monkeypatch.setattr(web, "export_onnx", None)
    monkeypatch.setattr(sys, "argv", ["convert", "web", str(shallow), "--out", str(tmp_path / "out")])
    assert_fails(capsys, reason, "give --runtime DIR, the folder dist of the npm package onnxruntime-web 1.")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_runtime_folder_without_a_file(shallow, runtime, tmp_path, monkeypatch, capsys):
    (runtime / web.RUNTIME[1]).unlink()
    given = ["web", str(shallow), "--out", str(tmp_path / "out"), "--runtime", str(runtime)]
    monkeypatch.setattr(sys, "argv", ["convert", *given])
    assert_fails(capsys, f"{runtime} has no {web.RUNTIME[1]}; give the folder dist")
    assert [path.name for path in tmp_path.iterdir()] == ["dist"]


def assert_fails(capsys, *parts):
    with pytest.raises(SystemExit) as exit_:
        command.main()
    errors = capsys.readouterr().err
    assert exit_.value.code == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    for part in parts:
        assert part in errors

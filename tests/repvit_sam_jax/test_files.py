"""Files and folders that are written whole or not at all, and what killed processes leave."""

import os
import subprocess
import sys

import pytest

from repvit_sam_jax import files

NOBODY = 2**22 + 1  # no process has this number: Linux ends at 2**22


HERE, ELSEWHERE = files._MACHINE, "0123abcd"


def test_leftovers_of_processes_that_are_gone(tmp_path):
    """The next one that writes the same removes them, those of other machines only if they are old; others stay."""
    gone = [tmp_path / f".mask.png.{HERE}-{NOBODY}.abcdef", tmp_path / f".mask.png.{ELSEWHERE}-{os.getpid()}.old"]
    stay = [tmp_path / f".mask.png.{HERE}-{os.getpid()}.mine", tmp_path / f".mask.png.{ELSEWHERE}-{NOBODY}.new"]
    stay += [tmp_path / ".mask.png.x", tmp_path / f".other.png.{HERE}-{NOBODY}.abcdef"]
    folder = tmp_path / f".out.{HERE}-{NOBODY}.x1"
    for path in (*gone, *stay):
        path.touch()
    folder.mkdir()
    (folder / "records.json").touch()
    os.utime(gone[1], (0, 0))
    files.write_atomically(tmp_path / "mask.png", lambda path: path.write_text("mask"))
    assert not any(path.exists() for path in gone)
    with files.new_folder(tmp_path / "out") as new:
        (new / "a").touch()
    assert not folder.exists()
    assert all(path.exists() for path in stay)


def test_a_folder_with_nothing_but_leftovers_is_empty(tmp_path):
    """A run that was killed can be started again at once."""
    left = tmp_path / "out" / f".out.{HERE}-{NOBODY}.abc"
    left.mkdir(parents=True)
    assert not files.is_taken(tmp_path / "out")
    with files.new_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_process_leaves_a_name_that_is_recognised(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from repvit_sam_jax.files import write_atomically
write_atomically(Path({str(tmp_path / "mask.png")!r}), lambda path: os.kill(os.getpid(), signal.SIGKILL))
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".mask.png.")
    files.write_atomically(tmp_path / "mask.png", lambda path: path.write_text("mask"))
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_long_names(tmp_path):
    """The temporary name is shorter than the longest name that a file may have."""
    name = "x" * 251 + ".png"
    files.write_atomically(tmp_path / name, lambda path: path.write_text("mask"))
    assert (tmp_path / name).read_text() == "mask"


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch):
    def refuse(*_args, **_named):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".mask.png.12.x"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as caught:
        files.write_atomically(tmp_path / "mask.png", lambda path: None)
    assert str(caught.value) == f"[Errno 13] Permission denied: '{tmp_path / 'mask.png'}'"


def test_the_error_is_not_lost_where_another_process_writes_beside(tmp_path):
    def fail():
        (tmp_path / "parent" / "other").touch()
        raise ValueError("the real error")

    with pytest.raises(ValueError, match="the real error"), files.new_folder(tmp_path / "parent" / "a"):
        fail()
    assert (tmp_path / "parent" / "other").exists()

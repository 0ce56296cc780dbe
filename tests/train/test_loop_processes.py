"""Runs in processes of their own: killed, signalled, on another mesh, two at once."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from tests.helpers.micro import ENCODER
from tests.helpers.processes import EIGHT_DEVICES, ROOT
from tests.helpers.training import lines, unlike
from train.loop import train

pytestmark = pytest.mark.slow(group="train")


def start(run, photos, **about):
    """The same run in a process of its own."""
    flags = {"JAX_PLATFORMS": "cpu", **about.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.micro", str(run), photos, json.dumps(about)],
        cwd=ROOT,
        env={**os.environ, **flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_killed_and_resumed(whole, photos, tmp_path, inputs):
    """SIGKILL after the first checkpoint, at whatever step it then is; the end is the same to the last bit."""
    run = tmp_path / "run"
    process = start(run, photos, changes={"steps": 8})
    wait_for(process, (run / "checkpoints" / "3").exists)
    process.kill()
    process.communicate()
    state = jax.device_get(train(ENCODER, run, inputs))
    assert not unlike(state, whole[1])
    steps = [line["step"] for line in lines(run / "metrics.jsonl")]
    assert steps == sorted(set(steps))  # nothing twice


def test_stopped_by_a_signal(whole, photos, tmp_path, inputs):
    """SIGTERM: the state is saved at the step it was in, the process ends well, and the run goes on from there."""
    run = tmp_path / "run"
    recipe = {"checkpoint_every": 100, "log_every": 1}
    process = start(run, photos, changes=recipe)
    wait_for(process, (run / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    saved = [int(path.name) for path in (run / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert process.returncode == 0, output
    assert "stopped by a signal" in output or saved == [8]
    state = jax.device_get(train(dataclasses.replace(ENCODER, **recipe), run, inputs))
    assert not unlike(state, whole[1])


def test_restored_on_another_mesh(whole, photos, tmp_path):
    """A checkpoint of one device goes on with eight, the params split over two; results differ by rounding alone."""
    run = tmp_path / "run"
    process = start(run, photos, changes={"steps": 8})
    wait_for(process, (run / "checkpoints" / "3").exists)
    process.kill()
    process.communicate()
    process = start(run, photos, changes={"steps": 8, "fsdp": 2}, env=EIGHT_DEVICES)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "ended at 8" in output
    assert json.loads((run / "recipe.json").read_text())["fsdp"] == 2
    expected, found = (lines(folder / "metrics.jsonl")[-1]["loss"] for folder in (whole[0], run))
    assert found == pytest.approx(expected, rel=1e-3)


def test_two_processes(whole, photos, tmp_path):
    """Each reads its half of every batch; the losses are those of one process."""
    run = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    running = [start(run, photos, processes=2, process=i, port=port) for i in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    expected, found = (lines(folder / "metrics.jsonl")[-1]["loss"] for folder in (whole[0], run))
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(lines(run / "metrics.jsonl")) == 5  # one of them writes


def test_a_lost_process_is_named(photos, tmp_path):
    """The other one ends with a line, and not after a minute with a stack."""
    run = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    about = {"processes": 2, "port": port, "changes": {"steps": 400, "log_every": 1}}
    running = [start(run, photos, process=i, **about) for i in range(2)]
    wait_for(running[0], (run / "metrics.jsonl").exists)
    running[1].kill()
    output, _ = running[0].communicate(timeout=60)
    running[1].communicate()
    assert running[0].returncode == 1, output
    assert "error: process 1 of 2 was lost; its own output says why. Start all of them again with the same" in output
    assert "Check failure stack trace" not in output

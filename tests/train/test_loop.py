"""Runs: left and taken up again, refused, stopped by bad losses; what they write."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax import load
from tests.helpers.micro import ENCODER
from tests.helpers.photos import annotations, jpeg, photo_and_masks, write_tar
from tests.helpers.processes import EIGHT_DEVICES, ROOT
from tests.helpers.training import of_step, unlike
from train import data, embeddings, loop
from train.export import export
from train.loop import Inputs, TrainingError, train
from train.recipe import Optimizer
from train.teacher import load_teacher


@pytest.fixture(scope="module")
def inputs(photos):
    return Inputs((photos,))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A run without interruption: its folder and its last state."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, jax.device_get(train(ENCODER, run, inputs))


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


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_run_writes(whole):
    run, state = whole
    assert int(state.step) == ENCODER.steps
    metrics = lines(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [2, 3, 4, 6, 8]  # a checkpoint looks at its losses first
    assert set(metrics[0]) >= {
        "loss",
        "mse",
        "learning_rate",
        "grad_norm",
        "update_norm",
        "images_per_second",
        "input_wait",
    }
    assert "mfu" not in metrics[0]  # nobody knows what this CPU can do
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"6", "8"}


def events(folder):
    """{tag: {step: value}} of TensorBoard's files: records of a length, its checksum, an event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_logs(inputs, tmp_path, monkeypatch):
    """Utilisation where the device's peak is known, TensorBoard's events, a profile."""
    peak = 1e10
    monkeypatch.setattr(loop.flops, "peak", lambda device: peak)
    recipe = dataclasses.replace(ENCODER, steps=2, log_every=1)
    train(recipe, tmp_path, inputs, tensorboard=True, profile=0)
    metrics = lines(tmp_path / "metrics.jsonl")
    for line in metrics:
        assert line["mfu"] == pytest.approx(of_step(recipe) * line["images_per_second"] / 8 / peak, rel=1e-6)
    found = events(tmp_path / "tensorboard")
    assert set(found) == set(metrics[0]) - {"step"}
    for tag, values in found.items():
        assert values == {line["step"]: pytest.approx(line[tag], rel=1e-6) for line in metrics}
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


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


def test_stopped_in_an_evaluation(whole, inputs, photos, tmp_path, monkeypatch):
    """SIGTERM between two of its batches: the run is saved without a score; the evaluation comes when it goes on."""
    recipe = dataclasses.replace(ENCODER, checkpoint_every=100, evaluate_every=4)
    inputs = dataclasses.replace(inputs, held_out=(photos,))
    evaluate, seen = loop.protocols.evaluate, []

    def interrupted(model, params, batches, **others):
        def watched():
            for batch in batches:
                seen.append(batch)
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return evaluate(model, params, watched(), **others)

    with monkeypatch.context() as patch:
        patch.setattr(loop.protocols, "evaluate", interrupted)
        assert int(train(recipe, tmp_path, inputs).step) == 4
    assert len(seen) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert not (tmp_path / "evaluations.jsonl").exists()
    state = train(recipe, tmp_path, inputs)
    assert not unlike(jax.device_get(state), whole[1])
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [4, 8]
    train(recipe, tmp_path, inputs)  # nothing is left to do
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [4, 8]


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


def test_cache_equals_the_teacher(whole, photos, inputs, tmp_path):
    teacher = load_teacher(ENCODER.teacher, 64, "float32")
    source = data.open_source((photos,))
    counted = []
    assert embeddings.embed(tmp_path / "cache", teacher, source, 5, progress=counted.append) == 0
    assert sum(counted) == len(source) == 24
    stamp = [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("emb*")]
    embeddings.embed(tmp_path / "cache", teacher, source, 5)  # nothing is left to do
    assert stamp == [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("emb*")]
    train(ENCODER, tmp_path / "run", dataclasses.replace(inputs, embeddings=tmp_path / "cache"))
    for online, cached in zip(*(lines(run / "metrics.jsonl") for run in (whole[0], tmp_path / "run")), strict=True):
        assert cached["loss"] == pytest.approx(online["loss"], rel=2e-3)  # embeddings are float16 on disk


def test_interrupted_cache(photos, tmp_path):
    teacher = load_teacher(ENCODER.teacher, 64, "float32")
    source = data.open_source((photos,))

    def interrupt(count):
        interrupt.done += count
        if interrupt.done >= 12:
            raise KeyboardInterrupt

    interrupt.done = 0
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embeddings.embed(tmp_path / "cache", teacher, source, 0)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(KeyboardInterrupt):
        embeddings.embed(tmp_path / "cache", teacher, source, 4, progress=interrupt)
    with pytest.raises(ValueError, match="lacks 12 of 24 photos: run embed again"):
        embeddings.EmbeddingCache(tmp_path / "cache", teacher, source)
    rest = []
    embeddings.embed(tmp_path / "cache", teacher, source, 4, progress=rest.append)
    assert rest == [12, 4, 4, 4]
    embeddings.embed(tmp_path / "fresh", teacher, source, 4)
    every = np.arange(24)
    found = [embeddings.EmbeddingCache(tmp_path / name, teacher, source)[every] for name in ("cache", "fresh")]
    np.testing.assert_array_equal(*found)
    for name in ("embeddings-00000.npy", "done.npy"):  # as a copy leaves it that was broken off
        file = tmp_path / "cache" / name
        whole = file.read_bytes()
        for size in (len(whole) - 5, 0):
            os.truncate(file, size)
            with pytest.raises(ValueError, match=rf"{name} is damaged: .*; remove the cache and make it again"):
                embeddings.embed(tmp_path / "cache", teacher, source, 4)
            with pytest.raises(ValueError, match=rf"{name} is damaged"):
                embeddings.EmbeddingCache(tmp_path / "cache", teacher, source)
            assert file.stat().st_size == size
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"identity": "random:other"},
            r"cache of other embeddings.*\n  teacher: 'random:micro_vit', expected 'random:ot",
        ),
        ({"dtype": "bfloat16"}, "dtype: 'float32', expected 'bfloat16'"),
    ],
)
def test_cache_of_another_teacher(photos, tmp_path, change, message):
    teacher = load_teacher(ENCODER.teacher, 64, "float32")
    source = data.open_source((photos,))
    embeddings.embed(tmp_path, teacher, source, 8)
    if "dtype" in change:
        other = load_teacher(ENCODER.teacher, 64, change["dtype"])
    else:
        other = dataclasses.replace(teacher, **change)
    with pytest.raises(ValueError, match=message):
        embeddings.EmbeddingCache(tmp_path, other, source)
    with pytest.raises(ValueError, match="choose another folder"):
        embeddings.embed(tmp_path, other, source, 8)


def test_loss_that_is_not_finite(inputs, tmp_path):
    """Names the step and the photos; the last checkpoint is from before."""
    recipe = dataclasses.replace(
        ENCODER, optimizer=dataclasses.replace(ENCODER.optimizer, learning_rate=1e30), checkpoint_every=1, log_every=100
    )
    with pytest.raises(
        TrainingError, match=r"step (\d): the loss is .*photos of this process were number \d+, "
    ) as error:
        train(recipe, tmp_path, inputs)
    step = int(str(error.value)[5])
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == step - 1


def test_a_run_that_did_not_begin_binds_nothing(inputs, tmp_path):
    """After a mistake in a file's name, the corrected command runs in the same folder."""
    recipe = dataclasses.replace(ENCODER, steps=2)
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        train(dataclasses.replace(recipe, init="nowhere.safetensors"), tmp_path, inputs)
    assert int(train(recipe, tmp_path, inputs).step) == 2


def test_run_of_another_recipe_or_data(whole, inputs, tmp_path):
    run, _ = whole
    with pytest.raises(ValueError, match=r"run of another recipe; choose a new folder\n  seed: 0, now 1"):
        train(dataclasses.replace(ENCODER, seed=1), run, inputs)
    from train import shards

    shards.write_shards(tmp_path / "other", 8, seed=4, size=96, workers=1)
    with pytest.raises(ValueError, match=r"run of another inputs(.|\n)*num_photos: 24, now 8"):
        train(ENCODER, run, Inputs((str(tmp_path / "other"),)))


def test_held_out_photos_may_come_later_but_not_change(inputs, photos, tmp_path):
    from train import shards

    recipe = dataclasses.replace(ENCODER, steps=1)
    train(recipe, tmp_path / "run", inputs)
    train(recipe, tmp_path / "run", dataclasses.replace(inputs, held_out=(photos,)))
    shards.write_shards(tmp_path / "other", 8, seed=4, size=96, workers=1)
    others = (str(tmp_path / "other"),)
    with pytest.raises(ValueError, match=r"run of another inputs; choose a new folder\n  held_out: "):
        train(recipe, tmp_path / "run", dataclasses.replace(inputs, held_out=others))


def test_the_first_held_out_photos_may_have_no_masks(inputs, tmp_path):
    """It is enough that some of those that are evaluated have; that none has is said before the first step."""
    members = {}
    for i in range(12):
        photo, masks = photo_and_masks(i)
        given = annotations(photo.shape[:2], *(masks if i > 9 else ()))
        members |= {f"sa_{i}.jpg": jpeg(photo), f"sa_{i}.json": given}
    recipe = dataclasses.replace(ENCODER, steps=1, evaluate_every=1)
    write_tar(tmp_path / "some.tar", members)
    train(recipe, tmp_path / "run", dataclasses.replace(inputs, held_out=(str(tmp_path / "some.tar"),)))
    (evaluation,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert evaluation["ground_truth"]["box"]["count"]["all"] > 2
    write_tar(tmp_path / "none.tar", dict(list(members.items())[:20]))
    with pytest.raises(ValueError, match=r"the first photos of .*none\.tar have no masks to evaluate on"):
        train(recipe, tmp_path / "run_2", dataclasses.replace(inputs, held_out=(str(tmp_path / "none.tar"),)))


def test_torn_last_line_is_forgotten(inputs, photos, tmp_path):
    """As a full disk leaves it: also one that ends in the middle of a nested value."""
    recipe = dataclasses.replace(ENCODER, steps=2, log_every=1, checkpoint_every=1, evaluate_every=1)
    inputs = dataclasses.replace(inputs, held_out=(photos,))
    train(recipe, tmp_path, inputs)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        whole = (tmp_path / name).read_text()
        torn = whole.splitlines()[-1]
        (tmp_path / name).write_text(whole + torn[: torn.find("}") + 1 if name.startswith("e") else 20])
    train(recipe, tmp_path, inputs)
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [1, 2]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "recipe micro needs a teacher: --set teacher=FILE"),
        ({"teacher": "random:micro_teacher"}, "unknown preset 'micro_teacher'"),
        ({"teacher": "random:tiny_vit_sam"}, "mask decoder of the teacher tiny_vit_sam is not built as that of"),
        ({"teacher": "nowhere.safetensors"}, "no checkpoint at nowhere"),
        ({"init": "nowhere.safetensors"}, "no checkpoint at nowhere"),
    ],
)
def test_models_that_do_not_fit(inputs, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(dataclasses.replace(ENCODER, **changes), tmp_path, inputs)


def test_full_disk(whole, inputs, tmp_path, monkeypatch):
    """An error while saving ends the run; earlier checkpoints stay, and the run goes on when there is space again."""
    from orbax.checkpoint import v1 as ocp

    save = ocp.training.Checkpointer.save_checkpointables_async

    def full(self, step, *args, **kwargs):
        if step > 3:
            raise OSError(28, "No space left on device")
        return save(self, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", full)
        with pytest.raises(OSError, match="No space left"):
            train(ENCODER, tmp_path, inputs)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert not unlike(jax.device_get(train(ENCODER, tmp_path, inputs)), whole[1])


def test_export(whole, tmp_path):
    run, state = whole
    assert export(run, tmp_path / "deploy.safetensors") == 8
    assert export(run, tmp_path / "train.safetensors", form="train", which=6) == 6
    model, params = load(tmp_path / "deploy.safetensors")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    student = loop.make_student(ENCODER)
    np.testing.assert_allclose(model.encode(params, images), student.encode(state.result, images), atol=2e-5, rtol=1e-4)
    load(tmp_path / "train.safetensors", form="train")
    export(run, tmp_path / "half.safetensors", dtype="bfloat16")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "deploy")]
    assert sizes[0] < 0.7 * sizes[1]  # of so small a model names and biases are a good part
    for half, full in zip(*map(jax.tree.leaves, (load(tmp_path / "half.safetensors")[1], params)), strict=True):
        expected = full.astype(jnp.bfloat16).astype(jnp.float32) if full.ndim >= 2 else full
        np.testing.assert_array_equal(half, expected, strict=True)
    with pytest.raises(ValueError, match="has no best checkpoint, for it never was evaluated"):
        export(run, tmp_path / "best.safetensors", which="best")
    with pytest.raises(ValueError, match="has no checkpoint of step 5"):
        export(run, tmp_path / "x.safetensors", which=5)
    with pytest.raises(FileNotFoundError, match="is no run"):
        export(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "published.pt").touch()
    with pytest.raises(ValueError, match=r"published\.pt: the file's name must end in \.safetensors"):
        export(run, tmp_path / "published.pt")
    assert not (tmp_path / "published.pt").stat().st_size


def test_export_of_a_mean(whole, inputs, tmp_path):
    run, state = whole
    other = train(dataclasses.replace(ENCODER, seed=1), tmp_path / "other", inputs)
    assert export(run, tmp_path / "mean.safetensors", mean_with=[tmp_path / "other"], form="train") == 8
    mean = load(tmp_path / "mean.safetensors", form="train")[1]
    halved = lambda x, y: ((np.asarray(x, np.float64) + np.asarray(y, np.float64)) / 2).astype(x.dtype)
    chex.assert_trees_all_close(mean, jax.tree.map(halved, state.result, other.result), rtol=1e-6, atol=1e-8)
    export(tmp_path / "other", tmp_path / "other.safetensors", form="train")
    export(run, tmp_path / "again.safetensors", mean_with=[tmp_path / "other.safetensors"], form="train")
    chex.assert_trees_all_equal(load(tmp_path / "again.safetensors", form="train")[1], mean)
    larger = shutil.copytree(run, tmp_path / "larger")
    recipe = json.loads((larger / "recipe.json").read_text()) | {"image_size": 128}
    (larger / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="larger has another student than"):
        export(run, tmp_path / "x.safetensors", mean_with=[larger])
    assert not (tmp_path / "x.safetensors").exists()


def test_a_run_can_start_from_an_export(whole, inputs, tmp_path):
    run, state = whole
    export(run, tmp_path / "train.safetensors", form="train")
    still = Optimizer(0.0, weight_decay=0.0)
    recipe = dataclasses.replace(ENCODER, init=str(tmp_path / "train.safetensors"), steps=1, optimizer=still)
    found = train(recipe, tmp_path / "run", inputs)
    assert not unlike(jax.device_get(found.trained), state.trained)

"""Runs: left and taken up again, refused, stopped by bad losses; what they write, and what comes out of them.

One file, for one finished run serves all of it.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from repvit_sam_jax import data, load
from repvit_sam_jax.config import MODELS
from repvit_sam_jax.data import shards
from repvit_sam_jax.evals import run as evals_run
from repvit_sam_jax.evals.segmenters import open_segmenter
from repvit_sam_jax.evals.tasks import open_task
from tests.helpers.micro import ENCODER
from tests.helpers.miniatures import bsds
from tests.helpers.photos import annotations, jpeg, photo_and_masks, write_tar
from tests.helpers.training import PEAK, WORK, arguments_of, lines, prepare, unlike
from train import __main__ as command
from train import evaluation, loop
from train.export import export
from train.log import TrainingError
from train.loop import Inputs, train
from train.recipe import to_json
from train.state import initial_params


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Other photos, for two batches."""
    folder = tmp_path_factory.mktemp("others") / "data"
    shards.write_shards(folder, 12, seed=4, size=96, workers=1)
    return (str(folder),)


@pytest.fixture
def copy(whole, tmp_path):
    """The folder of a run that has nothing left to do."""
    return shutil.copytree(whole[0], tmp_path / "run")


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


def test_logs(other):
    """Utilisation where the device's peak is known, TensorBoard's events."""
    run, _, _, counted = other
    ((recipe, student, teacher, arguments),) = counted
    assert (recipe.name, student, teacher) == (ENCODER.name, prepare(ENCODER)[0], prepare(ENCODER)[1].model)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(arguments) == shapes(arguments_of(ENCODER))
    metrics = lines(run / "metrics.jsonl")
    assert len(metrics) == ENCODER.steps
    for line in metrics:
        assert line["mfu"] == pytest.approx(WORK * line["images_per_second"] / 8 / PEAK, rel=1e-6)
    found = events(run / "tensorboard")
    assert set(found) == set(metrics[0]) - {"step"}
    for tag, values in found.items():
        assert values == {line["step"]: pytest.approx(line[tag], rel=1e-6) for line in metrics}


@pytest.mark.slow(group="train")
def test_profile(inputs, tmp_path):
    train(ENCODER, tmp_path, inputs, profile=0)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_runs_share_what_does_not_differ(whole, other):
    """A second run of a process compiles no step, with another seed either; and draws other batches."""
    run, state, compiled, _ = other
    assert "jit(step)" not in compiled
    assert int(state.seed) == 1
    first, second = (lines(folder / "metrics.jsonl")[-1]["loss"] for folder in (whole[0], run))
    assert first != second


def test_left_and_taken_up_again(whole, inputs, tmp_path, monkeypatch, capsys):
    """SIGTERM in the fourth step: the state is saved there, and the run goes on to the same end."""
    recipe = dataclasses.replace(ENCODER, checkpoint_every=100, log_every=1)
    to_device = data.to_device

    def signalled(*arguments):
        with contextlib.closing(to_device(*arguments)) as batches:
            for number, batch in enumerate(batches):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(data, "to_device", signalled)
        assert int(train(recipe, tmp_path, inputs).step) == 4
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert "stopped by a signal after step 4; the same command goes on from there" in capsys.readouterr().err
    assert not unlike(jax.device_get(train(recipe, tmp_path, inputs)), whole[1])
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_stopped_in_an_evaluation(whole, inputs, others, tmp_path, monkeypatch):
    """SIGTERM between two of its batches: the run is saved without a score; the evaluation comes when it goes on."""
    recipe = dataclasses.replace(ENCODER, checkpoint_every=100, evaluate_every=4)
    inputs = dataclasses.replace(inputs, held_out=others)
    evaluate, seen = evaluation.protocols.evaluate, []

    def interrupted(model, params, batches, **others):
        def watched():
            for batch in batches:
                seen.append(batch)
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return evaluate(model, params, watched(), **others)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.protocols, "evaluate", interrupted)
        assert int(train(recipe, tmp_path, inputs).step) == 4
    assert len(seen) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert not (tmp_path / "evaluations.jsonl").exists()
    state = train(recipe, tmp_path, inputs)
    assert not unlike(jax.device_get(state), whole[1])
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [4, 8]
    train(recipe, tmp_path, inputs)  # nothing is left to do
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [4, 8]


def test_cache_equals_the_teacher(whole, cached, inputs, tmp_path):
    train(ENCODER, tmp_path / "run", dataclasses.replace(inputs, embeddings=cached))
    for online, offline in zip(*(lines(run / "metrics.jsonl") for run in (whole[0], tmp_path / "run")), strict=True):
        assert offline["loss"] == pytest.approx(online["loss"], rel=2e-3)  # embeddings are float16 on disk


def test_loss_that_is_not_finite(inputs, cached, teacher, tmp_path):
    """Names the step and the photos; the last checkpoint is from before. A target of the second batch is infinite."""
    source = data.open_source(inputs.photos)
    read = data.batches(source, data.ExampleConfig(64), ENCODER.batch_size, seed=ENCODER.seed)
    with contextlib.closing(read):
        photos = sorted(list(itertools.islice(read, 2))[1]["index"].tolist())
    folder = shutil.copytree(cached, tmp_path / "cache")
    np.load(folder / "embeddings-00000.npy", mmap_mode="r+")[photos[3]] = np.inf
    recipe = dataclasses.replace(ENCODER, checkpoint_every=1, log_every=100)
    message = rf"step 2: the loss is .*photos of this process were number {', '.join(map(str, photos))} of the source"
    with pytest.raises(TrainingError, match=message):
        train(recipe, tmp_path / "run", dataclasses.replace(inputs, embeddings=folder))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]


def test_a_run_that_did_not_begin_binds_nothing(inputs, tmp_path, monkeypatch):
    """After a mistake in a file's name, the corrected command runs in the same folder."""
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        train(dataclasses.replace(ENCODER, init="nowhere.safetensors"), tmp_path, inputs)
    assert json.loads((tmp_path / "recipe.json").read_text())["init"] == "nowhere.safetensors"
    begun = RuntimeError("begun")
    monkeypatch.setattr(loop, "_start", lambda *_: throw(begun))
    with pytest.raises(RuntimeError, match="begun"):
        train(ENCODER, tmp_path, inputs)
    assert json.loads((tmp_path / "recipe.json").read_text())["init"] is None


def throw(error):
    raise error


def test_run_of_another_recipe_or_data(whole, inputs, others):
    run, _ = whole
    with pytest.raises(ValueError, match=r"run of another recipe; choose a new folder\n  seed: 0, now 1"):
        train(dataclasses.replace(ENCODER, seed=1), run, inputs)
    with pytest.raises(ValueError, match=r"run of another inputs(.|\n)*num_photos: 24, now 12"):
        train(ENCODER, run, Inputs(others))


def test_held_out_photos_may_come_later_but_not_change(copy, inputs, photos, others):
    train(ENCODER, copy, dataclasses.replace(inputs, held_out=(photos,)))
    assert [line["step"] for line in lines(copy / "evaluations.jsonl")] == [ENCODER.steps]
    with pytest.raises(ValueError, match=r"run of another inputs; choose a new folder\n  held_out: "):
        train(ENCODER, copy, dataclasses.replace(inputs, held_out=others))


def test_the_first_held_out_photos_may_have_no_masks(copy, inputs, tmp_path):
    """It is enough that some of those that are evaluated have; that none has is said before the first step."""
    members = {}
    for i in range(12):
        photo, masks = photo_and_masks(i)
        given = annotations(photo.shape[:2], *(masks if i > 9 else ()))
        members |= {f"sa_{i}.jpg": jpeg(photo), f"sa_{i}.json": given}
    write_tar(tmp_path / "some.tar", members)
    train(ENCODER, copy, dataclasses.replace(inputs, held_out=(str(tmp_path / "some.tar"),)))
    (evaluation,) = lines(copy / "evaluations.jsonl")
    assert evaluation["ground_truth"]["box"]["count"]["all"] > 2
    write_tar(tmp_path / "none.tar", dict(list(members.items())[:20]))
    with pytest.raises(ValueError, match=r"the first held-out photos, such as .*none\.tar:sa_0\.jpg, have no masks"):
        train(ENCODER, tmp_path / "run_2", dataclasses.replace(inputs, held_out=(str(tmp_path / "none.tar"),)))
    assert not (tmp_path / "run_2" / "metrics.jsonl").exists()


def test_torn_last_line_is_forgotten(copy, inputs, others):
    """As a full disk leaves it: also one that ends in the middle of a nested value."""
    inputs = dataclasses.replace(inputs, held_out=others)
    train(ENCODER, copy, inputs)
    before = {name: (copy / name).read_text() for name in ("metrics.jsonl", "evaluations.jsonl")}
    for name, whole in before.items():
        torn = whole.splitlines()[-1]
        (copy / name).write_text(whole + torn[: torn.find("}") + 1 if name.startswith("e") else 20])
    train(ENCODER, copy, inputs)
    assert {name: (copy / name).read_text() for name in before} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "recipe micro needs a teacher: --set teacher=FILE"),
        ({"teacher": "random:micro_teacher"}, "unknown preset 'micro_teacher'"),
        ({"teacher": "random:micro_other"}, "mask decoder of the teacher micro_other is not built as that of"),
        ({"teacher": "nowhere.safetensors"}, "no checkpoint at nowhere"),
        ({"init": "nowhere.safetensors"}, "no checkpoint at nowhere"),
    ],
)
def test_models_that_do_not_fit(inputs, tmp_path, monkeypatch, changes, message):
    vit = MODELS["micro_vit"]
    decoder = dataclasses.replace(vit.mask_decoder, mlp_dim=16)
    monkeypatch.setitem(MODELS, "micro_other", dataclasses.replace(vit, name="micro_other", mask_decoder=decoder))
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
    steps = [line["step"] for line in lines(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps))  # nothing twice


def test_export(whole, tmp_path):
    run, state = whole
    assert export(run, tmp_path / "deploy.safetensors") == 8
    assert export(run, tmp_path / "train.safetensors", form="train", which=6) == 6
    model, params = load(tmp_path / "deploy.safetensors")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    student = loop.make_student(ENCODER)
    found, expected = jax.jit(model.encode)(params, images), jax.jit(student.encode)(state.result, images)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
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


def test_export_of_a_mean(whole, other, tmp_path):
    run, state = whole
    assert export(run, tmp_path / "mean.safetensors", mean_with=[other[0]], form="train") == 8
    mean = load(tmp_path / "mean.safetensors", form="train")[1]
    halved = lambda x, y: ((np.asarray(x, np.float64) + np.asarray(y, np.float64)) / 2).astype(x.dtype)
    chex.assert_trees_all_close(mean, jax.tree.map(halved, state.result, other[1].result), rtol=1e-6, atol=1e-8)
    export(other[0], tmp_path / "other.safetensors", form="train")
    export(run, tmp_path / "again.safetensors", mean_with=[tmp_path / "other.safetensors"], form="train")
    chex.assert_trees_all_equal(load(tmp_path / "again.safetensors", form="train")[1], mean)
    larger = shutil.copytree(run, tmp_path / "larger")
    recipe = json.loads((larger / "recipe.json").read_text()) | {"image_size": 128}
    (larger / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="larger has another student than"):
        export(run, tmp_path / "x.safetensors", mean_with=[larger])
    assert not (tmp_path / "x.safetensors").exists()


def test_a_run_can_start_from_an_export(whole, tmp_path):
    run, state = whole
    export(run, tmp_path / "train.safetensors", form="train")
    student, teacher, _ = prepare(ENCODER)
    recipe = dataclasses.replace(ENCODER, init=str(tmp_path / "train.safetensors"))
    assert not unlike(initial_params(recipe, student, teacher), state.result)


def test_commands(monkeypatch, capsys, whole, photos, tmp_path):
    """Embed, distil, export; and an expected error is one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        command.main()

    run("recipes")
    assert "edgesam_stage2: repvit_sam, prompts in the loop" in capsys.readouterr().out
    cache = ["random:micro_vit", tmp_path / "cache", "--data", photos, "--image-size", 64, "--dtype", "float32"]
    run("embed", *cache)
    assert "24 photos" in capsys.readouterr().out
    (tmp_path / "recipe.json").write_text(to_json(dataclasses.replace(ENCODER, teacher="random:nothing", seed=1)))
    settings = ["--set", "teacher=random:micro_vit", "seed=0", "log_every=1", "checkpoint_every=100"]
    distil = "distill", tmp_path / "recipe.json", tmp_path / "run", "--data", photos
    run(*distil, "--embeddings", tmp_path / "cache", *settings)
    losses = [line["loss"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == ENCODER.steps
    assert losses[2] == pytest.approx(lines(whole[0] / "metrics.jsonl")[1]["loss"], rel=2e-3)
    run("export", tmp_path / "run", tmp_path / "out.safetensors", "--dtype", "bfloat16")
    assert "step 8, deploy form" in capsys.readouterr().out
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16", "F32"}  # noqa: SIM118
    with pytest.raises(SystemExit) as exit_:
        run("distill", "smoke", tmp_path / "other", "--data", tmp_path / "nowhere")
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error


def test_tasks_that_the_recipe_names_are_measured(copy, inputs, tmp_path):
    """On the state of a finished run: the numbers are those of its exported weights."""
    root = tmp_path / "root"
    bsds.write(root, photos=2)
    recipe = dataclasses.replace(ENCODER, evals=("edges",), evals_limit=1)
    with pytest.raises(ValueError, match=r"names evals, edges: give --evals-root DIR"):
        train(recipe, copy, inputs)
    with pytest.raises(ValueError, match=r"has no folder of the data of edges"):
        train(recipe, copy, dataclasses.replace(inputs, evals_root=tmp_path))
    inputs = dataclasses.replace(inputs, evals_root=root)
    train(recipe, copy, inputs)
    train(recipe, copy, inputs)  # the result is there
    (line,) = lines(copy / "tasks.jsonl")
    export(copy, tmp_path / "student.safetensors")
    task = open_task("edges", root / "BSDS500")
    place = evals_run.Place(root, None, tmp_path / "out")
    found = evals_run.run(task, open_segmenter(tmp_path / "student.safetensors"), place, limit=1)
    assert line == {"step": 8, "edges": dict(found.numbers)}

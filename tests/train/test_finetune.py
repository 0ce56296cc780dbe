"""Fine-tuning: who learns and who measures, when it ends, what it leaves."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import load
from repvit_sam_jax.config import get_config
from repvit_sam_jax.data import open_source
from repvit_sam_jax.models.sam import Sam
from repvit_sam_jax.weights import checkpoint, reparam
from tests.helpers.micro import ENCODER
from tests.helpers.photos import jpeg, photo_and_masks
from tests.helpers.training import lines
from train import __main__ as command
from train import finetune, loop
from train.finetune import _parted


def write_pairs(folder, numbers, without=()):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        photo, masks = photo_and_masks(number)
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg(photo))
        for i, mask in enumerate([] if number in without else masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{number}_{i}.png")
    return folder


def names(source):
    return {source[i].name.rpartition("/")[2] for i in range(len(source))}


def test_a_fifth_is_held_out_by_what_it_holds(tmp_path):
    """So the parts are the same whatever the photos are called, and copies of a photo are on one side."""
    pairs = write_pairs(tmp_path / "pairs", range(12))
    learnt, measured = _parted(open_source(pairs), None)
    assert (len(learnt), len(measured)) == (10, 2)
    assert len(names(learnt) | names(measured)) == 12
    for path in sorted(pairs.rglob("*.*")):
        shutil.copy(path, path.with_name(f"again{path.name}"))
    more = _parted(open_source(pairs), None)
    assert [len(part) for part in more] == [20, 4]
    assert names(more[1]) == names(measured) | {f"again{name}" for name in names(measured)}


def test_photos_without_masks_are_neither(tmp_path):
    shutil.rmtree(write_pairs(tmp_path, range(3)) / "masks")
    write_pairs(tmp_path, range(3), without=(0, 1))
    (tmp_path / "masks" / "1.png").write_bytes(b"damaged")
    with (
        pytest.warns(UserWarning, match=r"left out: 1 photo without masks, such as .*0\.jpg"),
        pytest.warns(UserWarning, match=r"left out: 1 photo, damaged or without masks, such as .*1\.png"),
        pytest.raises(ValueError, match="1 photo with masks: fine-tuning needs two at least"),
    ):
        _parted(open_source(tmp_path), None)


def test_held_out_photos_may_not_be_learnt_from(tmp_path):
    own, others = write_pairs(tmp_path / "own", range(5)), write_pairs(tmp_path / "others", range(3, 8))
    with pytest.raises(ValueError, match=r"at once, .*: 2 photos, .*3\.jpg, .*4\.jpg; leave"):
        _parted(open_source(own), open_source(others))
    learnt, measured = _parted(open_source(own), open_source(write_pairs(tmp_path / "apart", (8,))))
    assert (len(learnt), len(measured)) == (5, 1)


@pytest.fixture
def scores(monkeypatch):
    """What evaluations are going to say, and how many there were."""
    given, asked = [], []

    class Scripted:
        def __init__(self, *_):
            pass

        def __call__(self, state, stopping):
            asked.append(int(state.step))
            means = {"all": given[len(asked) - 1], **dict.fromkeys(("small", "medium", "large"), 0.0)}
            return {"ground_truth": {"box": means, "centre": means}}

    monkeypatch.setattr(loop, "Evaluation", Scripted)
    monkeypatch.setattr(loop.Log, "note", lambda *_: None)
    monkeypatch.setattr("train.log.protocols.table", lambda result: "")
    return given, asked


PATIENT = dataclasses.replace(ENCODER, evaluate_every=1, patience=2)


@pytest.mark.parametrize(
    ("given", "end", "best"),
    [
        ([0.5, 0.6, 0.7, 0.7, 0.6], 4, {2, 3}),  # no better twice; the same is no better
        ([0.5, 0.4, 0.3], 2, {0}),
        ([0.1 * i for i in range(9)], 8, {8}),
    ],
)
def test_a_run_ends_when_it_gets_no_better(whole, inputs, tmp_path, scores, given, end, best):
    scores[0].extend(given)
    recipe, held = PATIENT, dataclasses.replace(inputs, held_out=inputs.photos)
    run = loop.Run(recipe, tmp_path / "run", held)
    assert int(run.fit().step) == end
    assert run.finished
    assert scores[1] == list(range(end + 1))
    with loop.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.best in best
    again = loop.Run(recipe, tmp_path / "run", held)
    assert int(again.fit().step) == end
    assert again.finished
    assert scores[1] == list(range(end + 1))


def test_a_start_that_was_measured_and_not_kept_is_kept_later(whole, inputs, tmp_path, scores):
    """As after a kill between the two."""
    scores[0].extend([0.5, 0.4, 0.3, 0.4, 0.3])
    held = dataclasses.replace(inputs, held_out=inputs.photos)
    loop.Run(PATIENT, tmp_path / "run", held).fit()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert int(loop.Run(PATIENT, tmp_path / "run", held).fit().step) == 2
    assert scores[1] == [0, 1, 2, 1, 2]
    with loop.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.best == 0


def test_patience_needs_held_out_photos(inputs, tmp_path):
    with pytest.raises(ValueError, match="patience needs held-out photos"):
        loop.Run(PATIENT, tmp_path / "run", inputs)


def test_a_run_that_began_without_these_fields_goes_on(whole, inputs, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    for field in ("patience", "lora_rank"):
        del recipe[field]
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert int(loop.Run(ENCODER, run, inputs).fit().step) == 8


@pytest.fixture
def start(tmp_path):
    """A file in training form, and what it holds."""
    model = Sam(get_config("micro"), "train")
    params = jax.device_get(model.init(jax.random.key(5)))
    checkpoint.save(tmp_path / "start.safetensors", params, checkpoint.Metadata(model.config, "train"))
    return tmp_path / "start.safetensors", params


def test_what_can_not_be_fine_tuned(tmp_path, start):
    pairs = str(write_pairs(tmp_path / "pairs", range(6)))
    fused = reparam.fuse(start[1])
    checkpoint.save(tmp_path / "fused.safetensors", fused, checkpoint.Metadata(get_config("micro"), "deploy"))
    for weights, parts, message in (
        (tmp_path / "fused.safetensors", "all", "fused.safetensors is in deploy form: .*--parts decoder"),
        (start[0], "lora", "lora is for the attention of SAM's ViTs"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune.finetune(tmp_path / "run", [pairs], str(weights), parts=parts)
    with pytest.raises(FileNotFoundError):
        finetune.finetune(tmp_path / "run", [pairs], str(tmp_path / "none.safetensors"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.torch
@pytest.mark.slow(group="train")
def test_from_pairs_to_files_of_both_kinds(tmp_path, start, capsys):
    """The decoder learns, and the encoder keeps every branch and bit, though it ran fused."""
    import torch

    pairs, run, (file, before) = write_pairs(tmp_path / "pairs", range(10)), tmp_path / "run", start
    small = ["steps=6", "evaluate_every=2", "checkpoint_every=2", "patience=9", "prompting.num_prompts=2"]
    given = ["finetune", str(run), "--data", str(pairs), "--weights", str(file), "--set", *small]
    command.main(given)
    printed = capsys.readouterr().out
    assert "8 photos to learn from, 2 held out" in printed
    evaluations = lines(run / "evaluations.jsonl")
    assert [line["step"] for line in evaluations] == [0, 2, 4, 6]
    best = max(evaluations, key=lambda line: (line["score"], -line["step"]))
    old, new = (100 * line["ground_truth"]["box"]["all"] for line in (evaluations[0], best))
    assert f"| box | {old:.1f} | {new:.1f} | {new - old:+.1f} |" in (run / "before_after.md").read_text()
    with Image.open(run / "before_after.png") as opened:
        assert opened.height > 2 * 240
    model, after = load(run / "finetuned.safetensors", form="train")
    for part in ("image_encoder", "batch_stats", "prompt_encoder"):
        jax.tree.map(np.testing.assert_array_equal, after[part], before[part])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), after["mask_decoder"], before["mask_decoder"])
    assert any(jax.tree.leaves(moved)) == bool(best["step"])
    state = torch.load(run / "finetuned.pt", weights_only=True)
    np.testing.assert_array_equal(state["mask_decoder.iou_token.weight"], after["mask_decoder"]["iou_token"])
    images = np.zeros((1, 64, 64, 3), np.float32)
    fused = Sam(model.config).encode(load(run / "finetuned.safetensors")[1], images)
    assert np.isfinite(fused).all()
    with contextlib.suppress(SystemExit):
        command.main(given)
    assert capsys.readouterr().out == printed

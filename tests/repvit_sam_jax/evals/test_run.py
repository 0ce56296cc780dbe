"""Runs of a task that are stopped and go on, results on disk, tables."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.evals import pictures, result, run
from repvit_sam_jax.evals.tasks import find_data, open_task


def square(answer):
    return answer**2


class Squares:
    """Items are numbers; what is asked of the subject is written down."""

    name, group, settings = "duts", 2, {"power": 2}
    keys = tuple(f"folder/item {i}" for i in range(5))

    def __init__(self):
        self.score, self.loaded, self.segmented = square, [], []

    def load(self, key):
        self.loaded.append(key)
        return int(key[-1])

    def segment(self, subject, items):
        self.segmented.append(list(items))
        return items

    def summarise(self, records):
        assert tuple(records) == self.keys[: len(records)]
        return {"MAE": float(sum(records.values())), "F1": math.nan}, {"photos": len(records)}

    def panels(self, item):
        return {"photo": np.full((8, 10, 3), item, np.uint8)}

    def panel(self, item, answer):
        return np.full((8, 6, 3), 9 * answer, np.uint8)


class Stopped(Squares):
    """Ctrl-C comes before the third group, or an item can't be read."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def load(self, key):
        if self.error and key == self.keys[3]:
            raise self.error
        return super().load(key)

    def segment(self, subject, items):
        if len(self.segmented) == 2:
            raise KeyboardInterrupt
        return super().segment(subject, items)


class Subject:
    def __init__(self, name="one", **about):
        self.name, self.about = name, about


@pytest.fixture
def place(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "boxes.json").write_text("[]")
    return run.Place(tmp_path / "data", tmp_path / "boxes.json", tmp_path / "out")


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(place):
    with pytest.raises(KeyboardInterrupt):
        run.run(Stopped(), Subject(), place)
    assert not (place.out / "one.json").exists()
    with pytest.raises(ValueError, match="unfinished run with other settings: model"):
        run.run(Squares(), Subject(weights="others"), place)
    task = Squares()
    found = run.run(task, Subject(), place)
    assert task.segmented == [[4]]
    assert found.numbers["MAE"] == 0 + 1 + 4 + 9 + 16
    assert found.counts == {"photos": 5}
    assert sorted(path.name for path in place.out.iterdir()) == ["one.json"]


def test_an_item_that_cant_be_read_ends_the_run_and_what_is_done_stays(place):
    with pytest.raises(ValueError, match="no photo"):
        run.run(Stopped(ValueError("no photo")), Subject(), place)
    task = Squares()
    run.run(task, Subject(), place)
    assert task.segmented == [[2, 3], [4]]


def test_a_finished_result_is_read_and_others_are_not_taken_for_it(place):
    first = run.run(Squares(), Subject(), place)
    task = Squares()
    again = run.run(task, Subject(), place)
    assert task.loaded == []
    assert json.dumps(again.numbers) == json.dumps(first.numbers)
    with pytest.raises(ValueError, match=r"one.json is a result of other model; give another --out"):
        run.run(task, Subject(weights="others"), place)
    place.proposals.write_text("[1]")
    with pytest.raises(ValueError, match=r"one.json is a result of other data"):
        run.run(task, Subject(), place)


def test_a_limit_takes_the_first_items_and_says_so(place):
    few = run.run(Squares(), Subject(), place, limit=3)
    assert (few.numbers["MAE"], few.data["items"], few.data["of"]) == (5, 3, 5)
    assert "3 of 5 items: not comparable to published rows" in result.table([few])
    assert run.run(Squares(), Subject(), place).numbers["MAE"] == 30
    with pytest.raises(ValueError, match="limit must be at least 1"):
        run.run(Squares(), Subject(), place, limit=0)


def test_results_come_back_from_json_and_nan_is_null(place, tmp_path):
    found = run.run(Squares(), Subject(), place)
    text = (place.out / "one.json").read_text()
    assert json.loads(text)["numbers"] == {"MAE": 30, "F1": None}
    back = result.Result.read(place.out / "one.json")
    assert math.isnan(back.numbers["F1"])
    assert back.settings == {"power": 2}
    assert back.data["proposals_sha256"] == found.data["proposals_sha256"]
    assert set(back.versions) >= {"repvit-sam-jax", "jax", "numpy"}
    broken = tmp_path / "broken.json"
    broken.write_text('{"numbers": {}}')
    with pytest.raises(ValueError, match=r"broken.json is no result of this version"):
        result.Result.read(broken)


def test_the_table_has_a_row_a_model_and_the_published_ones(place):
    found = [run.run(Squares(), Subject(name), place) for name in ("one", "two")]
    lines = result.table(found).splitlines()
    assert lines[0] == "| duts | MAE |"
    assert lines[2:4] == ["| one | 30.000 |", "| two | 30.000 |"]
    assert lines[4] == "| *ViT-H, published* | *0.046* |"
    assert lines[7] == "| *RepViT-SAM, published* | *0.066* |"
    assert lines[-1] == "5 photos"


def test_prompts_have_a_table_by_size():
    kinds = ("box single", "box best", "1 click single", "1 click best", "3 clicks single", "3 clicks best")
    kinds += ("5 clicks single", "5 clicks best")
    numbers = {f"{kind} {size}": i / 10 for i, kind in enumerate(kinds) for size in ("all", "small", "medium")}
    numbers |= {f"{kind} large": math.nan for kind in kinds} | {"AP": math.nan}
    numbers |= {f"NoC@{target} {choice}": 20.0 for target in (85, 90) for choice in ("single", "best")}
    about = {"items": 1, "of": 1}
    found = result.Result("prompted", "one", numbers, {"objects": 2}, {}, {}, about, {}, {}, "none")
    lines = result.table([found]).splitlines()
    assert lines[2] == "| one | 20.000 | 20.000 | 20.000 | 20.000 | - |"
    assert lines[4] == "| mean IoU | | all | small | medium | large |"
    assert lines[8] == "| one | 1 click single | 0.200 | 0.200 | 0.200 | - |"


def test_pictures_are_kept_of_the_first_items_and_composed(place):
    run.run(Squares(), Subject(), place)
    task = Squares()
    run.run(task, Subject(), place, num_pictures=2)  # they were not wanted before
    assert task.loaded == list(task.keys[:2])
    run.run(task, Subject("two"), place, num_pictures=2)
    sheet = np.array(Image.open(pictures.compose(place.out, task.keys[:2], ["one", "two"])))
    scale = pictures.HEIGHT / 8
    assert sheet.shape[:2] == (20 + 2 * (pictures.HEIGHT + pictures.GAP), round(22 * scale) + 2 * pictures.GAP)
    assert sheet[30, 5].tolist() == [0, 0, 0]
    assert sheet[30 + pictures.HEIGHT + pictures.GAP, 5].tolist() == [1, 1, 1]
    assert sheet[30 + pictures.HEIGHT + pictures.GAP, -5].tolist() == [9, 9, 9]


@pytest.mark.slow(group="use")
def test_processes_that_score_change_nothing(place):
    alone = run.run(Squares(), Subject(), place)
    together = run.run(Squares(), Subject("two"), place, workers=2)
    assert together.numbers["MAE"] == alone.numbers["MAE"]


def test_data_of_a_task_are_found_by_its_name_or_the_data_sets(tmp_path):
    assert find_data(tmp_path, "coco") is None
    for name in ("coco", "BSDS500", "proposals"):
        (tmp_path / name).mkdir()
    (tmp_path / "proposals/coco.json").write_text("[]")
    (tmp_path / "proposals/coco2.json").write_text("[]")
    assert find_data(tmp_path, "coco") == (tmp_path / "coco", tmp_path / "proposals/coco.json")
    assert find_data(tmp_path, "prompted") == (tmp_path / "coco", None)
    assert find_data(tmp_path, "edges") == (tmp_path / "BSDS500", None)
    with pytest.raises(ValueError, match="no task 'edge'; there are edges, coco"):
        open_task("edge", tmp_path)

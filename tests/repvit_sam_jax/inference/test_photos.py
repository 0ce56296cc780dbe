"""Folders of photos: read ahead, segmented in batches, each as it would be alone."""

import json
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import PRESETS, SamPredictor, cli, load
from repvit_sam_jax.cli import masks
from repvit_sam_jax.inference import backends, photos
from repvit_sam_jax.inference.overlay import draw_overlay
from repvit_sam_jax.inference.photos import Failure, Segmented, mask_names, segment_photos
from repvit_sam_jax.inference.prompts import Prompt
from repvit_sam_jax.transforms import load_image
from repvit_sam_jax.weights import checkpoint
from tests.helpers.programs import recorded_compilations

POINT = [Prompt([[12, 15]], [1])]
BOX = [Prompt([[12, 15], [3, 4]], [1, 0], [2, 3, 25, 28])]
SIZES = {"a": (60, 80), "b": (33, 44), "c": (128, 60), "d": (40, 200), "e": (90, 90), "f": (64, 64)}


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(path, jax.tree.map(np.asarray, tiny[1]), checkpoint.Metadata(PRESETS["tiny"], "deploy"))
    return path


@pytest.fixture
def folder(tmp_path):
    """Six photos of different sizes, and files that are none."""
    path = tmp_path / "photos"
    path.mkdir()
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / f"{name}.png")
    (path / "notes.txt").write_text("no photo")
    (path / ".hidden.png").write_bytes(b"no photo")
    (path / "more.png").mkdir()
    return path


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def run(weights, tmp_path, monkeypatch, capsys):
    """The command on a folder, in an empty working folder: its exit code, stdout and stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["repvit-sam", "segment", *map(str, arguments), "--weights", str(weights)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


PROMPTS = {
    "a.png": {"points": [[12, 15]]},
    "b.png": {"points": [[12, 15], [3, 4, 0]]},
    "c.png": {"box": [2, 3, 25, 28]},
    "d.png": {"points": [[150, 15, 1]]},
    "f.png": {"points": [[12, 15, 1], [50, 60, 1], [1, 1, 0]], "box": [2, 3, 60, 63]},
}
FLAGS = {"a.png": ["--point=12,15"], "b.png": ["--point=12,15", "--point=3,4,0"], "c.png": ["--box=2,3,25,28"]}
FLAGS |= {"d.png": ["--point=150,15"]}
FLAGS |= {"f.png": ["--point=12,15", "--point=50,60,1", "--point=1,1,0", "--box=2,3,60,63"]}


def test_a_prompt_for_each_photo_gives_what_single_photos_give(run, folder, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    given = ["--prompts", tmp_path / "prompts.json", "--out", "masks", "--overlay", "new/overlays", "--json"]
    code, out, _ = run(folder, *given)
    assert code == 0
    report = json.loads(out)
    assert report["failures"] == []
    assert set(report["seconds"]) == {"load", "compile", "segment"}
    assert [result["photo"] for result in report["results"]] == [str(folder / name) for name in PROMPTS]
    work = tmp_path / "work"
    names = sorted(path.name for path in (work / "masks").iterdir())
    assert names == sorted(path.name for path in (work / "new" / "overlays").iterdir()) == list(PROMPTS)
    for name, result in zip(PROMPTS, report["results"], strict=True):
        alone = json.loads(run(folder / name, *FLAGS[name], "--overlay", "overlay.png", "--overwrite", "--json")[1])
        np.testing.assert_array_equal(read(work / "masks" / name), read(work / "mask.png"))
        np.testing.assert_array_equal(read(work / "new" / "overlays" / name), read(work / "overlay.png"))
        assert result["predicted_iou"] == pytest.approx(alone["predicted_iou"], abs=1e-6)
        for key in ("photo", "width", "height", "area", "box"):
            assert result[key] == alone[key], (name, key)


@pytest.mark.parametrize("flags", [["--point", "12,15"], ["--point", "12,15", "--box", "2,3,25,28"]])
def test_one_prompt_for_all_photos(run, folder, weights, tmp_path, flags):
    code, out, _ = run(folder, *flags)
    assert code == 0
    assert "6 of 6 photos segmented" in out
    assert sorted(path.stem for path in (tmp_path / "work" / "masks").iterdir()) == list(SIZES)
    alone = SamPredictor(*load(weights))
    for name in SIZES:
        alone.set_image(read(folder / f"{name}.png"))
        if len(flags) == 2:
            masks, iou, _ = alone.predict([[12, 15]], [1])
        else:
            masks, iou, _ = alone.predict([[12, 15]], [1], [2, 3, 25, 28], multimask_output=False)
        written = read(tmp_path / "work" / "masks" / f"{name}.png")
        np.testing.assert_array_equal(written > 0, masks[iou.argmax()])


def test_failures_do_not_stop_the_others(run, folder, tmp_path):
    """A damaged photo, one that is too narrow to scale, and one that the point lies outside of."""
    damaged = folder / "b.png"
    damaged.write_bytes((folder / "a.png").read_bytes()[:500])
    Image.fromarray(np.zeros((1, 2000, 3), np.uint8)).save(folder / "narrow.png")
    code, out, errors = run(folder, "--point", "50,0.5", "--json")
    report = json.loads(out)
    assert [result["photo"] for result in report["results"]] == [str(folder / f"{name}.png") for name in "acdef"]
    assert [failure["photo"] for failure in report["failures"]] == [str(damaged), str(folder / "narrow.png")]
    assert code == "\n".join(f"error: {failure['error']}" for failure in report["failures"])  # 1, and this on stderr
    assert errors == ""
    code, out, _ = run(folder, "--point", "70,0.5", "--out", "again")
    outside = f"{folder / 'c.png'}: point 0, (70, 0.5), lies outside the image of width 60, height 128"
    assert outside in code
    assert code.count("\n") == 3  # b, c, f and the narrow one
    assert "4 of 7 photos segmented" not in out
    assert "3 of 7 photos segmented" in out


BAD_PROMPTS = [
    ("[", "Expecting value"),
    ("[]", "expected an object"),
    ("{}", "names no photo"),
    ('{"z.png": {"points": [[1, 2]]}}', "no photo of the folder has the name z.png"),
    ('{"notes.txt": {"points": [[1, 2]]}}', "no photo of the folder has the name notes.txt"),
    ('{"a.png": {"points": [[1, 2]]}, "a.png": {"points": [[3, 4]]}}', "a.png is there twice"),
    ('{"a.png": {"points": [[1, 2]], "points": [[3, 4]]}}', "points is there twice"),
    ('{"a.png": {"point": [[1, 2]]}}', "a.png: unknown point"),
    ('{"a.png": {}}', 'a.png: expected "points", "box" or both'),
    ('{"a.png": [[1, 2]]}', 'a.png, prompt 0: expected "points", "box" or both'),
    ('{"a.png": []}', "a.png: the list of prompts is empty"),
    ('{"a.png": {"points": [[' + "1, " * 4000 + "1]]}}", "1, 1, 1..."),
    ("[" * 100_000, "prompts.json: brackets within brackets, too many"),
    ('{"a.png": {"points": []}}', "a.png: points are [[x, y], [x, y, label]], got []"),
    ('{"a.png": {"points": [1, 2]}}', "a.png: a point is [x, y] or [x, y, label], got 1"),
    ('{"a.png": {"points": [[1]]}}', "a.png: a point is"),
    ('{"a.png": {"points": [[1, 2, 1, 1]]}}', "a.png: a point is"),
    ('{"a.png": {"points": [[1, "2"]]}}', "a.png: a point is"),
    ('{"a.png": {"points": [[1, true]]}}', "a.png: a point is"),
    ('{"a.png": {"points": [[1, NaN]]}}', "a.png: a point is"),
    ('{"a.png": {"points": [[1, 2, 2]]}}', "a.png: labels are 1 (foreground) or 0 (background), got [1, 2, 2]"),
    ('{"a.png": {"box": [1, 2, 3]}}', "a.png: a box is [x1, y1, x2, y2], got [1, 2, 3]"),
    ('{"a.png": {"box": null}}', "a.png: a box is [x1, y1, x2, y2], got null"),
    ('{"a.png": {"box": [1, 2, 3, Infinity]}}', "a.png: a box is"),
]


@pytest.fixture
def fails(run, folder, tmp_path, monkeypatch):
    """The command ends with one line, before any weights are read, and writes nothing."""

    def fails(message, *arguments):
        monkeypatch.setattr("repvit_sam_jax.weights.loading.load", lambda *_, **__: pytest.fail("weights were read"))
        before = sorted(tmp_path.rglob("*"))
        code, out, errors = run(*arguments)
        assert (code, out) == (1, "")
        assert errors.startswith("error: ")
        assert message in errors
        assert errors.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    return fails


@pytest.mark.parametrize(("text", "message"), BAD_PROMPTS)
def test_bad_prompts_file(fails, folder, tmp_path, text, message):
    (tmp_path / "prompts.json").write_text(text)
    fails(message, folder, "--prompts", tmp_path / "prompts.json")


def test_errors_before_anything_is_computed(fails, folder, tmp_path):
    point = ["--point", "1,2"]
    fails("nothing to segment: give --point or --box, or with a folder --prompts", folder)
    fails("no file of prompts at none.json", folder, "--prompts", "none.json")
    fails("give either --prompts, or --point and --box", folder, "--prompts", "none.json", *point)
    fails("--prompts is for a folder of photos", folder / "a.png", "--prompts", "none.json")
    fails("--out and --overlay must be different folders", folder, *point, "--out", "x", "--overlay", "./x")
    fails("holds no file with an extension that Pillow reads", folder / "more.png", *point)
    fails("exists and is no empty folder", folder, *point, "--out", folder)
    fails("exists and is no empty folder", folder, *point, "--overlay", folder / "a.png")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([[1, 2]],), r"1 points have a label each, got labels of \[0\]"),
        (([[1, 2]], [1, 0]), r"1 points have a label each, got labels of \[2\]"),
        (([[1, 2, 3]], [1]), r"points are \(x, y\) each, \[n, 2\], got \[1, 3\]"),
        (([1, 2], [1]), r"points are \(x, y\) each, \[n, 2\], got \[2\]"),
        (([[1, 2]], [7]), "label 0 is 7; labels are 1 foreground, 0 background, -1 not a point"),
        (([[1, 2]], [0.9]), "label 0 is 0.9; labels are"),
        (((), (), [1, 2, 3]), r"a box is \[x1, y1, x2, y2\], got \[3\]"),
    ],
)
def test_prompts_of_other_shapes(given, message):
    with pytest.raises(ValueError, match=message):
        Prompt(*given)


def test_photos_of_one_stem(run, folder, tmp_path):
    """Their masks keep the extensions, also where names differ in case alone; others have none."""
    Image.new("RGB", (40, 30)).save(folder / "A.jpg")
    assert run(folder, "--point", "1,2")[0] == 0
    names = sorted(path.name for path in (tmp_path / "work" / "masks").iterdir())
    assert names == ["A.jpg.png", "a.png.png", "b.png", "c.png", "d.png", "e.png", "f.png"]
    assert mask_names({folder / "a.png": 1}) == {folder / "a.png": ["a"]}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a.jpg": 1, "b.jpg": 2}, ["a", "b_0", "b_1"]),
        ({"a.jpg": 1, "a.jpg.png": 1, "a.png": 1}, ["a.jpg", "a.jpg.png", "a.png"]),
        ({"a.jpg": 2, "a_0.jpg": 1}, ["a.jpg_0", "a.jpg_1", "a_0.jpg"]),
        ({"a.jpg": 2, "A_0.png": 1, "b.png": 1}, ["a.jpg_0", "a.jpg_1", "A_0.png", "b.png"]),
    ],
)
def test_no_two_masks_have_one_name(counts, expected):
    names = mask_names({Path(name): count for name, count in counts.items()})
    assert [name for of_photo in names.values() for name in of_photo] == expected


def test_several_objects_a_photo(run, folder, tmp_path):
    """Each has a mask of its own, equal to the one that it has alone; a byte order mark does no harm."""
    prompts = {"a.png": [PROMPTS["a.png"], PROMPTS["b.png"], PROMPTS["c.png"]], "b.png": PROMPTS["b.png"]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8-sig")
    code, out, _ = run(folder, "--prompts", tmp_path / "prompts.json", "--out", "masks", "--overlay", "drawn", "--json")
    assert code == 0
    work = tmp_path / "work"
    names = ["a_0.png", "a_1.png", "a_2.png", "b.png"]
    assert sorted(path.name for path in (work / "masks").iterdir()) == names
    assert [Path(result["mask"]).name for result in json.loads(out)["results"]] == names
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        run(folder / "a.png", *FLAGS[name], "--out", f"{i}.png")
        np.testing.assert_array_equal(read(work / f"{i}.png"), read(work / "masks" / f"a_{i}.png"))


def test_a_name_that_is_too_long_for_its_mask(run, folder, tmp_path, monkeypatch):
    """The others are written."""
    original = masks.save_picture

    def save(pixels, path):
        if path.stem == "b":
            raise OSError(36, "File name too long", str(path))
        original(pixels, path)

    monkeypatch.setattr("repvit_sam_jax.cli.masks.save_picture", save)
    code, out, _ = run(folder, "--point", "12,15")
    assert "File name too long" in code
    assert "5 of 6 photos segmented" in out


def test_kinds_of_files(folder):
    """What Pillow only recognises is no photo, and pictures that are left out are named."""
    for name in ("film.mpg", "data.h5", "phone.heic", "phone2.HEIC", "raw.dng"):
        (folder / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"left out, .*: 2 \.heic, 1 \.dng, 1 \.mpg; pip install pillow-heif"):
        found = photos.list_photos(folder)
    assert [path.stem for path in found] == list(SIZES)


@pytest.mark.parametrize("ahead", [1, 5, 40])
def test_reading_is_ahead_and_bounded(tiny, tmp_path, monkeypatch, ahead):
    """While a batch is predicted the next photos are read, and never more than may wait."""
    monkeypatch.setattr(photos, "READ_AHEAD", ahead)
    paths = [tmp_path / f"{i:02d}.png" for i in range(23)]
    requested, lock, following = [], threading.Lock(), threading.Event()
    done = 0

    def load(path):
        with lock:
            requested.append(path)
            assert len(requested) <= done + photos.ENCODE_BATCH + ahead
        if len(requested) > photos.ENCODE_BATCH:
            following.set()
        return np.full((20, 30, 3), int(path.stem), np.uint8)

    def embed(*arguments):
        assert following.wait(60), "no photo was asked for while the first batch was predicted"
        return original(*arguments)

    made = SamPredictor(*tiny)
    original = made.embed
    monkeypatch.setattr(made, "embed", embed)
    for result in segment_photos(made, dict.fromkeys(paths, POINT), load):
        done += 1
        assert result.image[0, 0, 0] == int(result.path.stem)
    assert done == len(requested) == len(paths)


def test_stopping_early_stops_reading(tiny, tmp_path):
    requested = []

    def load(path):
        requested.append(path)
        return np.zeros((20, 30, 3), np.uint8)

    paths = [tmp_path / f"{i}.png" for i in range(50)]
    results = segment_photos(SamPredictor(*tiny), dict.fromkeys(paths, POINT), load)
    next(results)
    results.close()
    assert len(requested) <= photos.ENCODE_BATCH + photos.READ_AHEAD


def test_photos_are_encoded_in_batches(tiny, folder, monkeypatch):
    """Whatever their prompts are."""
    sizes = []
    made = SamPredictor(*tiny)
    original = made.embed
    monkeypatch.setattr(made, "embed", lambda images: sizes.append(len(images)) or original(images))
    monkeypatch.setattr(photos, "ENCODE_BATCH", 2)
    kinds = {"a": POINT, "b": BOX, "c": POINT, "d": POINT, "e": BOX, "f": BOX}
    prompts = {folder / f"{name}.png": prompt for name, prompt in kinds.items()}
    found = {done.path.stem: done for done in segment_photos(made, prompts)}
    assert sizes == [2, 2, 2]
    assert list(found) == list(kinds)
    assert all(isinstance(done, Segmented) and done.mask.shape == SIZES[name] for name, done in found.items())
    failed = list(segment_photos(made, {folder / "notes.txt": POINT}))
    assert failed == [Failure(folder / "notes.txt", f"{folder / 'notes.txt'} is not an image that Pillow can read")]


def test_nothing_is_compiled_after_warmup(tiny, folder):
    """Six photos are a batch of four and one of two."""
    made = SamPredictor(*tiny)
    for function in (backends._encode, backends._split, backends._decode):
        function.clear_cache()
    with recorded_compilations() as compiled:
        made.warmup(num_images=6)
    assert len(compiled) == 5, compiled  # two encoders, what takes their batches apart, and a decoder
    with recorded_compilations() as compiled:
        assert len(list(segment_photos(made, dict.fromkeys(photos.list_photos(folder), POINT)))) == 6
    assert compiled == []


def test_overlay_of_a_folder(run, folder, tmp_path):
    run(folder, "--point", "12,15", "--overlay", "overlays")
    work = tmp_path / "work"
    image = load_image(folder / "b.png")
    expected = draw_overlay(image, read(work / "masks" / "b.png") > 0, [[12, 15]], [1])
    np.testing.assert_array_equal(read(work / "overlays" / "b.png"), expected)

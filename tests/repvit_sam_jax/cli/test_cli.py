"""`repvit-sam segment`, from photo to PNG, and what all commands share."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import repvit_sam_jax
from repvit_sam_jax import SamPredictor, __version__, cli, load, terminal
from tests.helpers.terminal import read, run


def test_point_takes_the_best_of_three_masks(weights, photo, tmp_path, monkeypatch, capsys):
    out, overlay = tmp_path / "mask.png", tmp_path / "overlay.png"
    run(monkeypatch, "segment", photo, "--point", "20,30", "--weights", weights, "--out", out, "--overlay", overlay)
    predictor = SamPredictor(*load(weights))
    predictor.set_image(read(photo))
    masks, iou, _ = predictor.predict([[20, 30]], [1])
    written = read(out)
    np.testing.assert_array_equal(written > 0, masks[iou.argmax()])
    assert read(overlay).shape == (60, 80, 3)
    text = capsys.readouterr().out
    assert "80 x 60 pixels" in text
    assert "encode" in text
    assert "compile" in text


def test_points_and_box_give_one_mask_and_json(weights, photo, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mask.png"
    points = ["--point", "20,30", "--point", "50,40,0"]
    run(monkeypatch, "segment", photo, *points, "--box", "5,5,70,50", "--weights", weights, "--out", out, "--json")
    result = json.loads(capsys.readouterr().out)
    predictor = SamPredictor(*load(weights))
    predictor.set_image(read(photo))
    masks, iou, _ = predictor.predict([[20, 30], [50, 40]], [1, 0], [5, 5, 70, 50], multimask_output=False)
    assert result["area"] == masks[0].sum()
    assert result["predicted_iou"] == pytest.approx(float(iou[0]), abs=1e-5)
    rows, columns = masks[0].nonzero()
    assert result["box"] == [columns.min(), rows.min(), columns.max(), rows.max()]
    assert set(result["seconds"]) == {"load", "compile", "encode", "decode"}
    assert result["overlay"] is None


NOTICE = "no --weights: using the embedded demonstration model, trained on synthetic scenes and by itself\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "--point", "20,30"],
        ["everything", "--points-per-side", "2", "--pred-iou-thresh", "-1", "--stability-score-thresh", "1e-6"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_weights(demo, photo, tmp_path, monkeypatch, capsys, arguments):
    """The demonstration model, and nothing else, in spite of a file of its name."""
    Path("demo").write_text("something else")
    out = lambda name: tmp_path / (f"{name}.png" if arguments[0] == "segment" else name)
    results, noise = {}, {}
    for name, weights in {"given": ["--weights", demo], "default": []}.items():
        run(monkeypatch, *arguments, photo, *weights, "--out", out(name), "--json")
        text, noise[name] = capsys.readouterr()
        results[name] = json.loads(text)
    assert results["default"]["weights"] == "demo"
    assert results["default"]["model"] == "tiny"
    assert results["given"]["weights"] == str(demo)
    assert noise["default"].startswith(NOTICE)
    assert NOTICE not in noise["given"]
    written = [path / "overlay.png" if path.is_dir() else path for path in map(out, results)]
    np.testing.assert_array_equal(read(written[0]), read(written[1]))
    assert results["default"].get("predicted_iou") == results["given"].get("predicted_iou")
    assert results["default"].get("masks") != 0


def test_folder_without_weights(demo, photo, monkeypatch, capsys):
    run(monkeypatch, "segment", photo.parent, "--point", "20,30", "--out", "masks", "--json")
    text, noise = capsys.readouterr()
    assert json.loads(text)["weights"] == "demo"
    assert noise.count(NOTICE) == 1


@pytest.mark.parametrize("arguments", [["segment", "--point", "20,30"], ["everything", "--out", "out"]])
def test_without_weights_in_a_broken_installation(demo, photo, monkeypatch, capsys, arguments):
    demo.unlink()
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, *arguments, photo)
    missing = f"the demonstration model is missing from this installation: there is no {demo}"
    assert capsys.readouterr() == ("", f"error: {missing}\n")


def test_onnx_without_weights(demo, photo, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, "segment", photo, "--point", "20,30", "--runtime", "onnx")
    expected = "error: --runtime onnx needs --weights, a folder from `repvit-sam export onnx`\n"
    assert capsys.readouterr() == ("", expected)


def test_module_and_help():
    for command in ("segment", "everything"):
        done = subprocess.run(
            [sys.executable, "-m", "repvit_sam_jax.cli", command, "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert "--point" in done.stdout
        assert "embedded demonstration model" in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        *(([name, "--help"], 0) for name in ("segment", "compare", "convert", "export", "train", "eval")),
        (["segment"], 2),
        (["segment", "photo.png"], 1),
        (["segments"], 2),
    ],
)
def test_help_and_mistakes_answer_without_jax(arguments, code):
    """None of the packages that take long to import is touched."""
    program = f"""
import sys
sys.argv = ["repvit-sam", *{arguments}]
from repvit_sam_jax.cli import main
try:
    main()
finally:
    print("imported", sorted({{"jax", "flax", "numpy", "scipy", "PIL", "tqdm"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("imported []\n")


CACHE = "JAX_COMPILATION_CACHE_DIR"


def run_and_count(*arguments, **environment):
    """A command in a process of its own: what it printed, and how often JAX found and missed programs in its cache."""
    code = """
import collections, json, sys
import jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
from repvit_sam_jax.cli import main
main()
print(json.dumps([events["cache_hits"], events["cache_misses"]]), file=sys.stderr)
"""
    cleared = {name: value for name, value in os.environ.items() if name != CACHE}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**cleared, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *noise, counts = done.stderr.splitlines()
    return noise, *json.loads(counts)


@pytest.mark.parametrize("command", ["segment", "segment a folder", "everything", "compare", "classify"])
@pytest.mark.parametrize(
    ("flag", "of_jax", "expected"),
    [
        ([], None, ...),
        ([], "jax", "jax"),
        ([], "", None),
        (["--compile-cache", "flag"], "jax", "flag"),
        (["--compile-cache", "None"], "jax", None),
    ],
    ids=["user", "environment", "empty environment", "flag", "no cache"],
)
def test_where_compiled_programs_are_kept(photo, monkeypatch, capsys, command, flag, of_jax, expected):
    """In the folder that the flag says, otherwise JAX's own variable, otherwise in the user's cache."""
    monkeypatch.chdir(photo.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(photo.parent / "user"))
    monkeypatch.delenv(CACHE) if of_jax is None else monkeypatch.setenv(CACHE, of_jax)
    monkeypatch.setattr(repvit_sam_jax, "cli", cli)
    monkeypatch.setattr(repvit_sam_jax, "terminal", terminal)
    afresh_too = ("repvit_sam_jax.cli", "repvit_sam_jax.terminal")
    known = {name for name in sys.modules if name.startswith(afresh_too)}
    for name in known | {f"repvit_sam_jax.cli.{path.stem}" for path in Path(cli.__file__).parent.glob("[a-z]*.py")}:
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))  # so that what comes afresh goes again
        del sys.modules[name]
    asked = []

    def use(folder):
        asked.append(folder)
        raise ValueError("that is all")

    afresh, name = importlib.import_module("repvit_sam_jax.cli"), command.split()[0]
    monkeypatch.setattr(importlib.import_module(f"repvit_sam_jax.cli.{name}"), "use_compile_cache", use)
    given = {
        "segment": ["photo.png", "--point", "3,4"],
        "segment a folder": [".", "--point", "3,4"],
        "everything": ["photo.png", "--out", "out"],
        "compare": ["photo.png", "--point", "3,4"],
        "classify": ["photo.png", "--weights", "weights.safetensors"],
    }
    monkeypatch.setattr(sys, "argv", ["repvit-sam", name, *given[command], *flag])
    with pytest.raises(SystemExit, match="1"):
        afresh.main()
    assert asked == [str(photo.parent / "user" / "repvit-sam") if expected is ... else expected]
    assert capsys.readouterr().err == "error: that is all\n"


@pytest.fixture
def jax_settings():
    """JAX's settings of its cache, as they were when the test is over."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_folders_of_compiled_programs(tmp_path, monkeypatch, capsys, jax_settings):
    jax_settings.update("jax_persistent_cache_min_compile_time_secs", 1)
    terminal.use_compile_cache(str(tmp_path / "new" / "deep"))
    assert jax_settings.jax_compilation_cache_dir == str(tmp_path / "new" / "deep")
    assert jax_settings.jax_persistent_cache_min_compile_time_secs == 0
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    terminal.use_compile_cache(None)
    assert jax_settings.jax_compilation_cache_dir is None
    assert capsys.readouterr() == ("", "")

    (tmp_path / "file").touch()
    jax_settings.update("jax_compilation_cache_dir", str(tmp_path / "new"))
    terminal.use_compile_cache(str(tmp_path / "file"))
    assert jax_settings.jax_compilation_cache_dir is None
    printed, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    assert printed == ""
    assert line.startswith(f"warning: compiled programs are not kept in {tmp_path / 'file'}: ")


@pytest.mark.slow(group="use")
def test_a_second_run_compiles_nothing(weights, photo, tmp_path):
    """The folder is the user's cache, the one that JAX is told in the environment, or the flag's."""
    given = ["segment", photo, "--point", "20,30", "--weights", weights, "--out", tmp_path / "mask.png", "--overwrite"]
    environment, folder = {"XDG_CACHE_HOME": str(tmp_path / "user")}, tmp_path / "user" / "repvit-sam"
    noise, hits, misses = run_and_count(*given, **environment)
    files = {path.name for path in folder.glob("*-cache")}
    assert (noise, hits) == ([], 0)
    assert misses == len(files) > 1
    assert run_and_count(*given, **environment) == ([], misses, 0)
    assert {path.name for path in folder.glob("*-cache")} == files

    assert run_and_count(*given, **environment, **{CACHE: str(tmp_path / "jax")}) == ([], 0, misses)
    environment[CACHE] = str(tmp_path / "other")
    assert run_and_count(*given, "--compile-cache", tmp_path / "jax", **environment) == ([], misses, 0)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow(group="use")
def test_without_a_compile_cache(weights, photo, tmp_path):
    given = ["segment", photo, "--point", "20,30", "--weights", weights, "--out", tmp_path / "mask.png", "--overwrite"]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "user"), CACHE: str(tmp_path / "jax")}
    assert run_and_count(*given, "--compile-cache", "None", **environment) == ([], 0, 0)
    assert not (tmp_path / "user").exists()
    assert not (tmp_path / "jax").exists()
    (tmp_path / "file").touch()
    (line,), hits, misses = run_and_count(*given, "--compile-cache", tmp_path / "file", **environment)
    assert (hits, misses) == (0, 0)
    assert line.startswith(f"warning: compiled programs are not kept in {tmp_path / 'file'}: ")


@pytest.mark.parametrize("command", ["segment", "everything"])
def test_folders_that_can_not_be_written_are_named_before_any_work(photo, tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root, who runs tests in containers, may write anywhere
    for module in ("repvit_sam_jax.weights.loading", "repvit_sam_jax.transforms"):
        monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / ("out.png" if command == "segment" else "out")
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, command, photo, "--out", out, *(("--point", "3,4") if command == "segment" else ()))
    assert "can't be written" in capsys.readouterr().err
    assert not out.exists()


def test_a_photo_is_not_overwritten_under_another_name(photo, tmp_path, monkeypatch, capsys):
    """As by a hard link, or where names that differ in case alone are the same file."""
    (tmp_path / "mask.png").hardlink_to(photo)
    before = photo.read_bytes()
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, "segment", photo, "--point", "3,4", "--out", tmp_path / "mask.png")
    assert "must be different files" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_earlier_mask_stays_when_the_new_one_can_not_be_written(weights, photo, tmp_path, monkeypatch, error):
    out = tmp_path / "mask.png"
    out.write_bytes(b"an earlier mask")

    def fail(_, file, *_args, **_options):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(SystemExit):
        run(monkeypatch, "segment", photo, "--point", "3,4", "--weights", weights, "--out", out, "--overwrite")
    assert out.read_bytes() == b"an earlier mask"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png", "photo.png"]


def test_a_cache_in_a_bucket_is_left_to_jax(tmp_path, monkeypatch, jax_settings):
    monkeypatch.chdir(tmp_path)
    terminal.use_compile_cache("gs://bucket/cache")
    assert jax_settings.jax_compilation_cache_dir == "gs://bucket/cache"
    assert not list(tmp_path.iterdir())


def test_interruption_ends_without_a_traceback(photo, tmp_path, monkeypatch, capsys):
    def interrupted(_path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr("repvit_sam_jax.transforms.load_image", interrupted)
    with pytest.raises(SystemExit, match="130"):
        run(monkeypatch, "everything", photo, "--out", tmp_path / "out")
    assert not capsys.readouterr().err


def test_version(monkeypatch, capsys):
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"repvit-sam-jax {__version__}\n"


def test_a_mask_is_not_overwritten(weights, photo, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mask.png"
    out.write_bytes(b"an earlier mask")
    given = ["segment", photo, "--point", "20,30", "--weights", weights, "--out", out]
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, *given)
    assert capsys.readouterr().err == f"error: --out {out} exists; give another name, or --overwrite\n"
    assert out.read_bytes() == b"an earlier mask"
    run(monkeypatch, *given, "--overwrite")
    assert read(out).shape == (60, 80)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["p.jpg", "--box", "20", "10", "300.5", "400"], ["p.jpg", "--box", "20,10,300.5,400"]),
        (["--box", "-2", "10", "30", "40", "p.jpg"], ["--box", "-2,10,30,40", "p.jpg"]),
        (["--point", "20", "10", "--point", "1", "2", "0", "p"], ["--point", "20,10", "--point", "1,2,0", "p"]),
        (["--box", "20,10,300,400", "5"], ["--box", "20,10,300,400", "5"]),
        (["--point", "20,10", "2024"], ["--point", "20,10", "2024"]),
        (["--point", "20", "10", "2024"], ["--point", "20,10", "2024"]),
        (["--box", ".5", "1e1", "300", "400", "5"], ["--box", ".5,1e1,300,400", "5"]),
        (["p.jpg", "--point"], ["p.jpg", "--point"]),
        (["--box", "20,10", "300,400"], ["--box", "20,10", "300,400"]),
        (["--points-per-side", "8", "4"], ["--points-per-side", "8", "4"]),
    ],
)
def test_numbers_need_no_commas(arguments, expected):
    assert cli._joined(arguments) == expected


def test_warnings_are_one_line(weights, photo, tmp_path, monkeypatch, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda *a: sys.stderr.write(warnings.formatwarning(*a[:4])))
        run(monkeypatch, "segment", photo, "--point", "20,30,0", "--weights", weights, "--out", tmp_path / "mask.png")
    assert capsys.readouterr().err.startswith("warning: the points are all background")


def test_photos_with_too_many_pixels(weights, photo, tmp_path, monkeypatch, capsys):
    for command in (
        ["segment", "--point", "1,2", "--out", tmp_path / "m.png"],
        ["everything", "--out", tmp_path / "o"],
    ):
        with pytest.raises(SystemExit, match="1"):
            run(monkeypatch, *command, photo, "--weights", weights, "--max-pixels", "4799")
        assert "has 80 x 60 pixels, more than 4799" in capsys.readouterr().err

"""Scenes: the same everywhere, varied, exact; and their shards in SA-1B's layout."""

import contextlib
import hashlib
import itertools
import json
import tarfile

import numpy as np
import pytest
import tyro
from PIL import Image
from skimage import measure

from repvit_sam_jax.data import ExampleConfig, make_example, open_source, read_annotations, shards
from repvit_sam_jax.data.synthetic import scenes, shapes
from repvit_sam_jax.inference.rle import counts_to_mask
from train import __main__ as command

SIZE = (96, 128)


@pytest.fixture(scope="module")
def series():
    return [scenes.render(0, number, SIZE) for number in range(12)]


@pytest.fixture(scope="module")
def outdoors():
    return [scenes.render(0, number, SIZE, view="outdoors") for number in range(12)]


@pytest.fixture(scope="module")
def strips():
    return [scenes.render(0, number, SIZE, view="strips") for number in range(12)]


@pytest.mark.parametrize(
    ("view", "expected"),
    [("series", "53eead5b37ef6e13"), ("outdoors", "d2382596a93dc96a"), ("strips", "46e9cf70fbae84a8")],
)
def test_same_pixels_on_every_machine(request, view, expected):
    """A digest that was computed once; if scenes are changed on purpose, so is it."""
    digest = hashlib.sha256()
    for scene in request.getfixturevalue(view):
        digest.update(scene.image.tobytes())
        for mask in scene.masks:
            digest.update(np.packbits(mask).tobytes())
    assert digest.hexdigest()[:16] == expected


def test_scene_depends_on_seed_and_number(series):
    again = scenes.render(0, 3, SIZE)
    np.testing.assert_array_equal(again.image, series[3].image)
    others = [scenes.render(1, 3, SIZE), *series]
    for a, b in itertools.combinations(others, 2):
        assert (a.image != b.image).mean() > 0.5


def test_close_ups_have_few_and_large_things(series):
    close = [scenes.render(0, number, SIZE, view="close_up") for number in range(12)]
    many, few = ([len(scene.masks) for scene in found] for found in (series, close))
    assert np.mean(few) < 0.75 * np.mean(many)
    small, large = (np.median([mask.sum() for scene in found for mask in scene.masks]) for found in (series, close))
    assert large > 1.7 * small


def test_far_views_have_more_and_smaller_things(series):
    size = (192, 256)
    usual, far = ([scenes.render(0, number, size, view=view) for number in range(12)] for view in ("usual", "far"))
    few, many = ([len(scene.masks) for scene in found] for found in (usual, far))
    assert np.mean(many) > 1.3 * np.mean(few)
    smallest = 0.003 * size[0] * size[1]
    counts = [sum(mask.sum() < smallest for scene in found for mask in scene.masks) for found in (usual, far)]
    assert counts[0] == 0
    assert counts[1] > 0.15 * np.sum(many)


def test_outdoors_surfaces_have_more_detail_and_fewer_colours(series, outdoors):
    """What sets photos apart: on 60 of BSDS500, neighbours differ by 0.034 on average; usual scenes have 0.012."""
    detail, colourful = [], []
    for found in (series, outdoors):
        images = [scene.image / 255 for scene in found]
        detail.append(np.mean([np.abs(np.diff(image.mean(-1), axis=1)).mean() for image in images]))
        # How far colours are from the line of greys and one hue: the third singular value, as a share of the first.
        spread = [np.linalg.svd((image - image.mean((0, 1))).reshape(-1, 3), compute_uv=False) for image in images]
        colourful.append(np.mean([values[2] / values[0] for values in spread]))
    assert detail[1] > 1.3 * detail[0]
    assert colourful[1] < 0.8 * colourful[0]


def test_strips_are_long_along_the_sides(outdoors, strips):
    """Of the masks that people draw of photos (48 of BSDS500) 19% have boxes more than three times as long as wide."""

    def share(found):
        boxes = [[np.ptp(where) + 1 for where in mask.nonzero()] for scene in found for mask in scene.masks]
        return np.mean([max(box) > 3 * min(box) for box in boxes])

    assert share(outdoors) < 0.15
    assert share(strips) > 0.4


def test_views_are_series_of_their_own(tmp_path):
    views = ("usual", "close_up", "far", "outdoors", "strips")
    written = {view: shards.write_shards(tmp_path / view, 2, size=64, view=view)[0].read_bytes() for view in views}
    assert len(set(written.values())) == 5
    with pytest.raises(ValueError, match="holds scenes with the settings"):
        shards.write_shards(tmp_path / "close_up", 2, size=64)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        shards.write_shards(tmp_path / "new", 2, seed=-1, size=64)
    assert not (tmp_path / "new").exists()


def test_masks_are_wholes_and_parts(series):
    """Any two are apart or one within the other; few pixels have no mask; no slivers; all sizes."""
    nested = 0
    areas, covered = [], []
    for scene in series:
        assert scene.image.shape == (*SIZE, 3)
        assert scene.image.dtype == np.uint8
        areas += [mask.sum() for mask in scene.masks]
        covered.append(np.any(scene.masks, axis=0).mean())
        for a, b in itertools.combinations(scene.masks, 2):
            both = (a & b).sum()
            assert both in (0, a.sum(), b.sum())
            nested += both > 0
        for mask in scene.masks:
            y, x = np.nonzero(mask)
            assert mask.sum() >= scenes.FILLED * (np.ptp(x) + 1) * (np.ptp(y) + 1)
    assert nested > 20
    assert np.mean(covered) > 0.94
    assert min(areas) >= 0.003 * SIZE[0] * SIZE[1]
    assert max(areas) / min(areas) > 100
    assert np.mean(np.array(areas) > 0.005 * SIZE[0] * SIZE[1]) > 0.3
    assert any(measure.euler_number(mask) <= 0 for scene in series for mask in scene.masks), "none has a hole"


def test_masks_fit_the_picture(series):
    """Between neighbouring pixels, colours differ more across an outline than elsewhere."""
    for scene in series:
        label = np.sum([np.where(mask, i + 1, 0) for i, mask in enumerate(scene.masks)], axis=0)
        edges = label[:, 1:] != label[:, :-1]
        steps = np.abs(np.diff(scene.image.astype(int), axis=1)).sum(-1)
        assert steps[edges].mean() > 1.2 * steps[~edges].mean()


def test_rasterizer_covers_exactly():
    """Half pixels, holes, parts outside; against areas by arithmetic."""
    square = np.array([(2, 2), (8, 2), (8, 8), (2, 8)], float)
    top, left, coverage = shapes.rasterize([square], (20, 20))
    assert (top, left, coverage.sum()) == (2, 2, 36)
    assert shapes.rasterize([square, (square - 5) / 3 + 5], (20, 20))[2].sum() == 32
    assert shapes.rasterize([square - 5], (20, 20))[2].sum() == 9
    assert shapes.rasterize([square + 30], (20, 20))[2].size == 0
    np.testing.assert_allclose(shapes.rasterize([square + 1 / 3], (20, 20))[2][0, 1:6], 2 / 3)
    circle = shapes.circle_points(np.arange(200) * (2 * np.pi / 200)) * 30 + 50.2
    assert shapes.rasterize([circle], (100, 100))[2].sum() == pytest.approx(np.pi * 900, rel=2e-3)


def test_size_is_checked():
    with pytest.raises(ValueError, match="32 pixels or more"):
        scenes.render(0, 0, (31, 64))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 3)


def test_shards_are_sa1bs(small_shards, tmp_path):
    paths = shards.write_shards(tmp_path / "out", 5, seed=2, size=96)
    assert [path.name for path in paths] == ["sa_000000.tar", "sa_000001.tar"]
    with tarfile.open(paths[1]) as archive:
        assert archive.getnames() == ["sa_3.jpg", "sa_3.json", "sa_4.jpg", "sa_4.json"]
    source = open_source(tmp_path / "out")
    shapes = set()
    for number in range(len(source)):
        content = json.loads(source[number].annotations)
        size = content["image"]["height"], content["image"]["width"]
        shapes.add(size)
        assert max(size) == 96
        assert content["image"]["file_name"] == f"sa_{number}.jpg"
        scene = scenes.render(2, number, size)
        found = read_annotations(source[number].annotations, size)
        assert len(found) == len(scene.masks)
        for counts, mask, about in zip(found, scene.masks, content["annotations"], strict=True):
            np.testing.assert_array_equal(counts_to_mask(counts, size), mask)
            y, x = np.nonzero(mask)
            assert about["area"] == mask.sum()
            assert about["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)]
            assert mask[int(about["point_coords"][0][1]), int(about["point_coords"][0][0])]
        example = make_example(source[number], ExampleConfig(96, num_masks=4))
        height, width = size
        assert np.abs(example["image"][:height, :width].astype(int) - scene.image).mean() < 12, "JPEG"
        assert example["valid"].any()
    assert len(shapes) > 1


def test_interrupted_run_goes_on(small_shards, tmp_path, monkeypatch):
    whole = [path.read_bytes() for path in shards.write_shards(tmp_path / "whole", 5, size=64)]
    out, original = tmp_path / "out", shards.members_of

    def interrupted(seed, size, number, **options):
        if number == 4:
            raise KeyboardInterrupt
        return original(seed, size, number, **options)

    monkeypatch.setattr(shards, "members_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shards.write_shards(out, 5, size=64)
    assert sorted(path.name for path in out.iterdir()) == ["sa_000000.tar", "scenes.json"]
    (out / ".sa_000001.tar.killed").touch()
    drawn = []
    monkeypatch.setattr(shards, "members_of", lambda *of, **options: drawn.append(of[-1]) or original(*of, **options))
    assert [path.read_bytes() for path in shards.write_shards(out, 5, size=64)] == whole
    assert drawn == [3, 4]
    assert sorted(path.name for path in out.iterdir()) == ["sa_000000.tar", "sa_000001.tar", "scenes.json"]


@pytest.mark.slow(group="train")
def test_workers_draw_the_same(tmp_path):
    one, two = (shards.write_shards(tmp_path / str(n), 3, size=64, workers=n)[0].read_bytes() for n in (1, 2))
    assert one == two


def test_command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            command.main()
        return capsys.readouterr()

    out = tmp_path / "out"
    assert "2 scenes in 1 shard" in run("scenes", out, "--count", 2, "--size", 64).out
    assert "2 photos, fingerprint" in run("index", out).out
    before = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "mine.png")
    for arguments, message in [
        (("scenes", out, "--count", 3, "--size", 64), "holds scenes with the settings"),
        (("scenes", tmp_path / "other"), "is no empty folder"),
        (("scenes", tmp_path / "other" / "mine.png"), "is no empty folder"),
        (("scenes", tmp_path / "new", "--count", 0), "at least 1"),
        (("index", tmp_path / "missing"), "no file, folder"),
    ]:
        errors = run(*arguments).err
        assert errors.startswith("error: ")
        assert message in errors
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.app.cli(prog="train", args=["scenes", "--help"], config=(tyro.conf.FlagCreatePairsOff,))
    assert exit_.value.code == 0
    assert "--workers" in capsys.readouterr().out

"""What a path names, and records as they are stored."""

import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.data import open_source, tar
from repvit_sam_jax.data.tar import open_shard
from tests.helpers.photos import jpeg, photo_and_masks, write_tar


def contents(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_records_of_shards_are_what_tarfile_reads(shards):
    source = open_source(shards)
    files = [contents(path) for path in sorted(shards.glob("*.tar"))]
    assert len(source) == 13
    for i in range(13):
        expected, record = files[i >= 8], source[i]
        assert record.name == f"{shards}/sa_00000{int(i >= 8)}.tar:sa_{i}.jpg"
        assert record.photo == expected[f"sa_{i}.jpg"]
        assert record.annotations == expected[f"sa_{i}.json"]
    for i in (-1, 13):
        with pytest.raises(IndexError, match=f"record {i} of 13"):
            source[i]
    again = pickle.loads(pickle.dumps(source))
    assert again[9] == source[9]


def test_ways_to_name_shards(shards, tmp_path):
    whole = open_source(shards)
    paths = sorted(shards.glob("*.tar"))
    assert open_source(str(shards / "sa_*.tar")).fingerprint == whole.fingerprint
    assert open_source(paths[::-1]).fingerprint == whole.fingerprint
    assert len(open_source(paths[1])) == 5
    moved = shutil.copytree(shards, tmp_path / "moved")
    assert open_source(moved).fingerprint == whole.fingerprint
    assert open_source(paths[0]).fingerprint != whole.fingerprint


def test_shards_of_one_name_may_lie_anywhere(shards, tmp_path):
    """Two series of scenes, say: their order doesn't depend on their folders' names."""
    first, second = sorted(shards.glob("*.tar"))
    found = []
    for names in (("a", "b"), ("b", "a")):
        under = tmp_path / "".join(names)
        for name, path in zip(names, (first, second), strict=True):
            (under / name).mkdir(parents=True)
            shutil.copy(path, under / name / "s.tar")
        found.append(open_source(sorted(under.glob("*/s.tar"))))
    assert found[0].fingerprint == found[1].fingerprint
    assert [found[0][i].photo for i in range(13)] == [found[1][i].photo for i in range(13)]


def test_members_without_a_partner_and_others(tmp_path):
    """A photo without JSON has no annotations; a JSON alone and other files are left out; long names are read."""
    long = "x" * 150
    members = {"a.jpg": b"A", "b.json": b"B", "notes.txt": b"?", f"{long}.png": b"P", f"{long}.json": b"J"}
    write_tar(tmp_path / "s.tar", {**members, "dir/.hidden.jpg": b"?"})
    source = open_source(tmp_path / "s.tar")
    assert [(source[i].photo, source[i].annotations) for i in range(len(source))] == [(b"A", None), (b"P", b"J")]
    write_tar(tmp_path / "t.tar", {"a.jpg": b"A", "a.png": b"A"})
    with pytest.raises(ValueError, match=r"holds a\.png and a\.jpg; one photo a stem"):
        open_source(tmp_path / "t.tar")


@pytest.fixture
def scans(monkeypatch):
    scanned = []
    original = tar._scan
    monkeypatch.setattr(tar, "_scan", lambda path: scanned.append(path.name) or original(path))
    return scanned


def test_index_is_kept_beside_the_tar_and_follows_it(shards, scans):
    path = shards / "sa_000000.tar"
    first = open_shard(path)
    assert sorted(p.name for p in shards.iterdir()) == ["sa_000000.tar", "sa_000000.tar.index.npz", "sa_000001.tar"]
    again = open_shard(path)
    assert len(scans) == 1
    np.testing.assert_array_equal(again.spans, first.spans)
    shutil.copy(shards / "sa_000001.tar", path)  # another file of that name
    assert open_shard(path).names[0] == b"sa_8.jpg"
    os.utime(path, ns=(0, 0))
    open_shard(path)
    assert len(scans) == 3
    for damage in (b"", b"PK\3\4", b"garbage"):
        (shards / "sa_000000.tar.index.npz").write_bytes(damage)
        assert open_shard(path).names[0] == b"sa_8.jpg"
    assert len(scans) == 6


def test_index_of_a_folder_that_is_not_writable(shards, scans, cache):
    before = sorted(shards.iterdir())
    shards.chmod(0o555)
    try:
        for _ in range(2):
            assert len(open_source(shards)) == 13
        assert sorted(shards.iterdir()) == before
    finally:
        shards.chmod(0o755)
    assert len(scans) == 2
    assert len(list((cache / "tar").iterdir())) == 2


def test_index_that_can_be_kept_nowhere(shards, scans, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(tar, "write_atomically", refuse)
    for _ in range(2):
        assert len(open_shard(shards / "sa_000000.tar").names) == 8
    assert len(scans) == 2


@pytest.mark.parametrize("kept", [0.3, 0.6, "to a member", "half an end"])
def test_incomplete_tar(shards, kept):
    path = shards / "sa_000000.tar"
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        end = archive.getmembers()[6].offset
    sizes = {"to a member": end, "half an end": end + 100}
    path.write_bytes(content[: sizes[kept] if kept in sizes else int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"sa_000000\.tar .*members.*download it again"):
        open_shard(path)
    assert not (shards / "sa_000000.tar.index.npz").exists()


def test_tar_with_a_damaged_header(shards):
    path = shards / "sa_000000.tar"
    with tarfile.open(path) as archive:
        at = archive.getmembers()[6].offset
    content = bytearray(path.read_bytes())
    content[at : at + 50] = b"x" * 50
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sa_000000\.tar ends, or is damaged, after 6 members"):
        open_shard(path)


def test_tar_that_shrinks_while_it_is_used(shards):
    source = open_source(shards)
    os.truncate(shards / "sa_000001.tar", 600)
    with pytest.raises(OSError, match=r"sa_000001\.tar has become shorter"):
        source[12]


def test_folder_of_photos(tmp_path):
    for name in ("b.jpg", "a/z.png", "a/y.JPG", ".hidden.jpg", ".cache/x.jpg", "notes.txt", "masks.json"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    source = open_source(tmp_path / "photos")
    assert [source[i].photo for i in range(len(source))] == [b"a/y.JPG", b"a/z.png", b"b.jpg"]
    assert source[0].annotations is None
    assert source[0].name.endswith("photos/a/y.JPG")
    before = source.fingerprint
    (tmp_path / "photos" / "b.jpg").write_bytes(b"longer")
    assert open_source(tmp_path / "photos").fingerprint != before


def coco_file(path, names, annotations, **changes):
    images = [{"id": 10 + i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, **changes}))
    return path


def test_coco_annotations(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "unlisted.jpg"):
        (folder / name).write_bytes(jpeg(photo_and_masks(0)[0]))
    polygon = [[1.0, 1.0, 20.0, 1.0, 20.0, 20.0]]
    annotations = [
        {"image_id": 11, "segmentation": polygon, "iscrowd": 0},
        {"image_id": 11, "segmentation": {"size": [40, 60], "counts": [2400]}, "iscrowd": 1},
        {"image_id": 10, "segmentation": polygon},
        {"image_id": 11, "segmentation": {"size": [40, 60], "counts": [0, 2400]}},
        {"image_id": 10, "bbox": [1, 1, 20, 20], "segmentation": []},
        {"image_id": 10, "segmentation": [[1.0, 1.0, 20.0, 1.0], [5.0, 5.0, 9.0, 9.0]]},
    ]
    apart = coco_file(tmp_path / "instances.json", ["a.jpg", "b.jpg"], annotations)
    beside = coco_file(folder / "instances.json", ["a.jpg", "b.jpg"], annotations)
    for spec in ([folder, apart], [apart, folder], beside):
        with pytest.warns(UserWarning, match=r"2 annotations are left out, which have no mask"):
            source = open_source(spec)
        assert [source[i].name for i in range(len(source))] == [str(folder / "a.jpg"), str(folder / "b.jpg")]
        found = [json.loads(source[i].annotations) for i in range(2)]
        assert [len(of["annotations"]) for of in found] == [1, 2]
        assert found[1]["annotations"][1] == annotations[3]
        assert found[1]["image"]["height"] == 40
    coco_file(beside, ["a.jpg", "b.jpg"], annotations[1:4])
    assert open_source(beside).fingerprint != source.fingerprint


def test_bad_coco_files(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    file = tmp_path / "c.json"
    for make, message in [
        (lambda: file.write_text("{"), "no COCO instances file"),
        (lambda: file.write_text("[]"), "no COCO instances file"),
        (lambda: coco_file(file, ["a.jpg"], [{"id": 9}]), "no COCO instances file: KeyError: 'image_id'"),
        (lambda: file.write_text("[" * 100_000), "no COCO instances file: RecursionError"),
        (lambda: coco_file(file, [], []), "lists no images"),
    ]:
        make()
        with pytest.raises(ValueError, match=message):
            open_source(file)
    coco_file(file, ["a.jpg", "x.jpg", "y.jpg"], [])
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of 3 photos of .*c\.json, first x\.jpg"):
        open_source(file)


def test_paths_that_name_no_source(tmp_path, shards):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no tar" * 200)
    write_tar(tmp_path / "none.tar", {"readme.txt": b"?"})
    (tmp_path / "a.txt").touch()
    for error, spec, message in [
        (FileNotFoundError, tmp_path / "missing", "no file, folder or match of a pattern at"),
        (FileNotFoundError, str(tmp_path / "sa_*.tar"), "no file, folder or match of a pattern at"),
        (FileNotFoundError, [*shards.glob("*.tar"), shards / "sa_000002.tar"], r"sa_000002\.tar"),
        (FileNotFoundError, tmp_path / "empty", "holds neither .tar shards nor photos"),
        (ValueError, tmp_path / "text.tar", "is no uncompressed tar"),
        (ValueError, tmp_path / "none.tar", "holds no photos"),
        (ValueError, tmp_path / "a.txt", r"a\.txt: expected \.tar files"),
        (ValueError, [shards, tmp_path / "empty"], r"expected \.tar files"),
        (ValueError, [], r"nothing: expected \.tar files"),
    ]:
        with pytest.raises(error, match=message):
            open_source(spec)


def test_annotations_of_images_that_are_not_listed(tmp_path):
    """As in subsets, whose makers leave images out and not their annotations."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    polygon = [[1, 1, 20, 1, 20, 20]]
    given = [{"image_id": n, "segmentation": polygon} for n in (10, 9, 9)]
    coco_file(tmp_path / "c.json", ["a.jpg"], given)
    with pytest.warns(UserWarning, match=r"c\.json: 2 annotations are left out, whose images it does not list"):
        source = open_source(tmp_path / "c.json")
    assert len(json.loads(source[0].annotations)["annotations"]) == 1


def test_separators_of_windows_and_a_byte_order_mark(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "train" / "a.jpg")
    coco_file(tmp_path / "c.json", ["train\\a.jpg"], [])
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "c.json").read_bytes())
    assert open_source(tmp_path / "c.json")[0].photo == (tmp_path / "train" / "a.jpg").read_bytes()


def test_gzip_under_the_name_of_a_tar(tmp_path):
    """SA-1B's sample arrives so."""
    with tarfile.open(tmp_path / "sa_000000.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("sa_1.jpg"))
    with pytest.raises(ValueError, match=r"compressed by gzip.*gunzip -c .*sa_000000\.tar > .*sa_000000\.plain\.tar"):
        open_source(tmp_path / "sa_000000.tar")

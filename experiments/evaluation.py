"""Pictures of the evaluation tasks on synthetic scenes, which are our own, in the layouts of the data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

from repvit_sam_jax.data.synthetic import scenes
from repvit_sam_jax.evals import pictures, run
from repvit_sam_jax.evals.proposals import tracks
from repvit_sam_jax.evals.segmenters import open_segmenter
from repvit_sam_jax.evals.tasks import open_task
from repvit_sam_jax.inference import rle

SIZE = (360, 480)
FRAMES, STEP = 8, 8
"""Frames of a video, and pixels that the view moves in between."""

Mask = Bool[np.ndarray, "h w"]


def run_all(out: Path, weights: str, seed: int = 5) -> list[Path]:
    """Write scenes in `out/data`, run four tasks on them, and give a JPEG for each.

    Args:
      out: a folder; what is there of the same scenes is used.
      weights: of the model.
      seed: of the scenes.
    """
    written = {
        "edges": (_write_bsds(out / "data/bsds", seed), None),
        "coco": _write_coco(out / "data/coco", seed),
        "davis": _write_davis(out / "data", seed),
        "mvtec": _write_mvtec(out / "data/mvtec", seed),
    }
    segmenter, made = open_segmenter(weights), []
    for name, (data, proposals) in written.items():
        task = open_task(name, data, proposals)
        place = run.Place(data, proposals, out / name)
        run.run(task, segmenter, place, num_pictures=2)
        sheet = Image.open(pictures.compose(place.out, list(task.keys)[:2], [segmenter.name]))
        made.append(out / f"evaluation-{name}.jpg")
        sheet.save(made[-1], quality=88)
    return made


def _scene(seed: int, number: int, size: tuple[int, int] = SIZE) -> tuple[UInt8[np.ndarray, "h w 3"], list[Mask]]:
    """A photo and its largest objects, which do not overlap."""
    scene = scenes.render(seed, number, size)
    taken, found = np.zeros(size, bool), list[Mask]()
    for mask in sorted(scene.masks, key=np.count_nonzero, reverse=True):
        if not (mask & taken).any() and len(found) < 8:
            found.append(mask)
            taken |= mask
    return scene.image, found


def _write_bsds(folder: Path, seed: int) -> Path:
    for number in range(2):
        photo, masks = _scene(seed, number)
        drawn = np.any([mask ^ ndimage.binary_erosion(mask) for mask in masks], axis=0)
        cell = np.empty((1, 1), object)
        cell[0, 0] = {"Boundaries": drawn.astype(np.uint8)}
        for place in ("images/test", "groundTruth/test"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / f"images/test/{number}.jpg", quality=95)
        savemat(folder / f"groundTruth/test/{number}.mat", {"groundTruth": cell})
    return folder


def _write_coco(folder: Path, seed: int) -> tuple[Path, Path]:
    """With boxes that are some pixels off."""
    rng = np.random.default_rng(seed)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    boxes = []
    for number in range(2):
        photo, masks = _scene(seed, number)
        (folder / "val2017").mkdir(parents=True, exist_ok=True)
        name = f"{number:012}.jpg"
        Image.fromarray(photo).save(folder / "val2017" / name, quality=95)
        content["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for mask in masks:
            box = _box(mask)
            about = {"image_id": number, "category_id": 1}
            counts = rle.counts_to_coco(rle.mask_to_counts(mask), SIZE)
            of = {"id": len(content["annotations"]) + 1, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
            content["annotations"].append({**about, **of, "segmentation": counts})
            noisy = np.maximum(np.add(box, rng.normal(0, 3, 4)), 1).round(1).tolist()
            boxes.append({**about, "bbox": noisy, "score": round(float(rng.uniform(0.4, 1)), 3)})
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    (folder.parent / "coco-boxes.json").write_text(json.dumps(boxes))
    return folder, folder.parent / "coco-boxes.json"


def _write_davis(folder: Path, seed: int) -> tuple[Path, Path]:
    """Views that move over a wider scene, with points that keep to their objects."""
    rng, root = np.random.default_rng(seed), folder / "DAVIS"
    found, names = list[tuple[str, tracks.Tracks]](), ("one", "two")
    for number, name in enumerate(names):
        photo, masks = _scene(seed, number, (SIZE[0], SIZE[1] + FRAMES * STEP))
        seen = [mask for mask in masks if mask[:, FRAMES * STEP : SIZE[1]].sum() > 800][:3]
        places = [root / kind / "480p" / name for kind in ("JPEGImages", "Annotations")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        points = np.stack([_points(mask[:, FRAMES * STEP : SIZE[1]], 8, rng) for mask in seen])
        moved = np.stack([points + np.array([STEP * (FRAMES - t), 0]) for t in range(FRAMES)]).astype(np.float32)
        for t in range(FRAMES):
            view = slice(t * STEP, t * STEP + SIZE[1])
            labels = np.zeros(SIZE, np.uint8)
            for i, mask in enumerate(seen, 1):
                labels[mask[:, view]] = i
            Image.fromarray(photo[:, view]).save(places[0] / f"{t:05}.jpg", quality=95)
            picture = Image.fromarray(labels)
            picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
            picture.save(places[1] / f"{t:05}.png")
        visible = np.ones(moved.shape[:3], bool)
        found.append((name, tracks.Tracks(moved, visible, np.ones(points.shape[:2], np.int8), SIZE)))
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(names))
    tracks.write(folder / "davis-tracks.npz", found)
    return root, folder / "davis-tracks.npz"


def _write_mvtec(folder: Path, seed: int) -> tuple[Path, Path]:
    """An object of each scene is its defect; another box is wrong, and saliency is the defect, blurred, with noise."""
    rng, arrays = np.random.default_rng(seed), dict[str, np.ndarray]()
    for number in range(2):
        photo, masks = _scene(seed, number, (400, 400))
        defect, wrong = masks[len(masks) // 2], masks[0]
        for place in ("bottle/test/defect", "bottle/ground_truth/defect"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / f"bottle/test/defect/{number:03}.png")
        truth = Image.fromarray(defect.astype(np.uint8) * 255)
        truth.save(folder / f"bottle/ground_truth/defect/{number:03}_mask.png")
        corners = np.array([_box(mask) for mask in (defect, wrong)], np.float32)
        corners[:, 2:] += corners[:, :2]
        salient = ndimage.gaussian_filter(defect.astype(float), 12) + rng.uniform(0, 0.1, defect.shape)
        key = f"bottle/test/defect/{number:03}"
        arrays |= {f"{key}/boxes": corners, f"{key}/scores": np.array([0.4, 0.2]), f"{key}/saliency": salient}
    np.savez_compressed(folder.parent / "mvtec-anomalies.npz", **arrays)  # type: ignore[arg-type]
    return folder, folder.parent / "mvtec-anomalies.npz"


def _points(mask: Mask, count: int, rng: np.random.Generator) -> np.ndarray:
    """(x, y) of pixels well within a mask."""
    inner = ndimage.binary_erosion(mask, iterations=4)
    y, x = np.nonzero(inner if inner.any() else mask)
    chosen = rng.integers(len(x), size=count)
    return np.stack([x[chosen], y[chosen]], -1)


def _box(mask: Mask) -> Sequence[int]:
    """[x, y, w, h]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]

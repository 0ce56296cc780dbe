"""Zero-shot anomalies on MVTec-AD, in the way of SAA+ (arXiv 2305.10724; caoyunkang/Segment-Any-Anomaly).

Boxes of a detector become a mask each, their scores rise with the saliency inside the masks, and the five best make a
map, 400 pixels a side (`metrics.anomaly`). The maps of all test photos of a class, good ones included, are stretched
together from 0 to 1, and the best F1 of their pixels over all thresholds is the class's; the result is the mean of
classes. A photo without a box has a map of zeros.

Deliberate differences: maps are kept in float32, so that what is equal but for float64's rounding is one threshold; on
photos that are not square, which the data set has none of, good ones have a truth of their own size.

A photo's record is its map, compressed, and its truth as COCO's RLE, 10 KB or more, so that a class is put together
when all is done: up to 167 maps, 1.3 GB of memory.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ...data.datasets.mvtec import CLASSES, MvtecAd, class_of
from ...inference import masks, overlay, rle
from ...inference.backends import ENCODE_BATCH
from ...inference.predictor import EmbeddedImage, SamPredictor
from ...inference.prompts import Prompt
from ..metrics import anomaly
from ..proposals.anomalies import AnomalyFile, Proposals
from ..segmenters import Segmenter
from .protocol import Picture

SIZE = (anomaly.MAP_SIZE, anomaly.MAP_SIZE)


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """A photo, its defect, and what is proposed for it."""

    photo: Picture
    truth: Bool[np.ndarray, "h w"]
    proposals: Proposals


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A photo's map and truth, both at 400 x 400."""

    map: Float[np.ndarray, "s s"]
    truth: Bool[np.ndarray, "s s"]


class Anomalies:
    """The task; see the module."""

    name, group = "mvtec", ENCODE_BATCH

    def __init__(self, data: MvtecAd, proposals: AnomalyFile) -> None:
        self.data, self.keys, self.proposals, self.score = data, data.names, proposals, score
        self.settings: dict[str, Any] = {"classes": data.classes, "map_size": anomaly.MAP_SIZE, "best": anomaly.BEST}
        self.settings |= {"channels": "BGR"}

    def load(self, key: str) -> Item:
        """A photo, its defect, and its proposals. Raises ValueError if a box lies outside the photo."""
        photo, proposals = self.data.photo(key), self.proposals.read(key)
        for i, box in enumerate(proposals.boxes):
            Prompt(box=box).check(photo.shape[:2], f" {i} of {key}")
        return Item(photo, self.data.truth(key, photo.shape[:2]), proposals)

    def segment(self, subject: Segmenter, items: Sequence[Item]) -> list[Answer]:
        """Maps of photos."""
        predictor = subject.predictor
        # SAA+ reads photos with OpenCV and hands SAM the channels in that order; the published numbers are of this.
        embedded = predictor.embed([item.photo[..., ::-1] for item in items])
        pairs = list(zip(embedded, items, strict=True))
        return [Answer(anomaly_map(predictor, e, i.proposals), anomaly.resize_truth(i.truth)) for e, i in pairs]

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """The best F1 of each class, and their mean `max F1`; classes none of whose pixels is anomalous are left out.

        Raises:
          ValueError: no class is left, or a class's maps are the same everywhere.
        """
        by_class: dict[str, list[Mapping[str, str]]] = {}
        for key, record in records.items():
            by_class.setdefault(class_of(key), []).append(record)
        found = {name: f1 for name, of_class in by_class.items() if (f1 := _max_f1(name, of_class)) is not None}
        if not found:
            raise ValueError("none of the photos has an anomalous pixel: nothing to measure; raise --limit")
        counts = {"photos": len(records), f"of {len(CLASSES)} classes": len(found)}
        if left := len(by_class) - len(found):
            counts["classes left out, without an anomalous pixel so far"] = left
        return {"max F1": float(np.mean(list(found.values()))), **found}, counts

    def panels(self, item: Item) -> dict[str, Picture]:
        """The photo, and the defect on it."""
        return {"photo": item.photo, "truth": overlay.draw_overlay(item.photo, item.truth)}

    def panel(self, item: Item, answer: Answer) -> Picture:
        """The map over the photo, from dark through red to yellow, the photo's highest value being the brightest."""
        strength = anomaly.resize(answer.map / (answer.map.max() or 1), *item.photo.shape[:2])[..., None]
        heat = np.clip(strength * [2, 2, 0] - [0, 1, 0], 0, 1)
        return np.round(0.4 * item.photo + 0.6 * 255 * heat).astype(np.uint8)


def open_task(data: Path, proposals: Path | None = None) -> Anomalies:
    """As `tasks.open_task`; proposals are those of `evals.proposals.anomalies`."""
    if proposals is None:
        raise ValueError("mvtec starts from boxes and saliency: give --proposals, an .npz file")
    found = MvtecAd(data)
    return Anomalies(found, AnomalyFile(proposals, found.names))


def anomaly_map(predictor: SamPredictor, photo: EmbeddedImage, proposals: Proposals) -> Float[np.ndarray, "s s"]:
    """The map of a photo, as the module says. Masks of the photo's size are made one at a time."""
    if not len(proposals.boxes):
        return np.zeros(SIZE)
    config = predictor.config
    dispatched = predictor.dispatch(photo, [Prompt(box=box) for box in proposals.boxes], multimask_output=False)
    low_res = predictor.fetch(dispatched, return_low_res_only=True)[2][:, 0]
    upscaler = masks.Upscaler(photo.size, config.image_size, config.low_res_size)
    mask = lambda i: upscaler.logits(low_res[i]) > config.mask_threshold
    saliency = anomaly.resize(proposals.saliency, *photo.size)
    pairs = enumerate(proposals.scores)
    scores = np.concatenate([anomaly.rescore(mask(i)[None], np.array([score]), saliency) for i, score in pairs])
    best = np.argsort(scores)[-anomaly.BEST :]
    return anomaly.score_map(np.stack([mask(i) for i in best]), scores[best], photo.size)


def score(answer: Answer) -> dict[str, str]:
    """`map` in float32, compressed by zlib, in base64, and `truth`, the counts of COCO's RLE."""
    packed = zlib.compress(answer.map.astype("<f4").tobytes())
    truth = rle.counts_to_coco(rle.mask_to_counts(answer.truth), SIZE)
    return {"map": base64.b64encode(packed).decode(), "truth": truth["counts"]}


def _max_f1(name: str, records: Sequence[Mapping[str, str]]) -> float | None:
    """The best F1 of a class's records, None without an anomalous pixel."""
    truths = np.stack([rle.counts_to_mask(rle.decompress(record["truth"]), SIZE) for record in records])
    if not truths.any():
        return None
    maps = [np.frombuffer(zlib.decompress(base64.b64decode(r["map"])), "<f4").reshape(SIZE) for r in records]
    try:
        return anomaly.max_f1(anomaly.normalise(maps), truths)[0]
    except ValueError as error:
        raise ValueError(f"class {name}: {error}") from error

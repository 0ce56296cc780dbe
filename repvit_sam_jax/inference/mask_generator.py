"""`SamAutomaticMaskGenerator`: masks of everything on a photo (facebookresearch/segment-anything), over `Sam`.

The official class's arguments, filters and records. Deliberate differences: it takes `(model, params)`;
thresholds that are not given are the model's own; `generate_batch` serves many images; crops and images are encoded
several at once; prompts whose masks all fail the predicted-IoU filter are never turned into masks; a photo without any
mask gives an empty list with crops too; boolean masks are in C order; invalid values are errors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from .. import transforms
from ..models.model import Params
from ..models.prompt_encoder import Prompts
from ..models.sam import Sam
from . import masks, rle
from .backends import ENCODE_BATCH, Backend, JaxBackend
from .grids import read_count, read_grids, read_number
from .predictor import EmbeddedImage, SamPredictor
from .prompts import bucket

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
FILTERS = ("pred_iou_thresh", "stability_score_thresh", "edge of a crop", "box_nms_thresh", "crop_nms_thresh")
"""Why a candidate is dropped."""

Record = dict[str, Any]


class SamAutomaticMaskGenerator:
    """Prompts with a grid of points, then drops poor masks and duplicates.

        generator = SamAutomaticMaskGenerator(*repvit_sam_jax.load("repvit_sam.safetensors"))
        records = generator.generate(photo)

    Programs are compiled for batches of points and for the encoder, whatever the sizes of the photos.
    """

    def __init__(
        self,
        model: Sam | Backend,
        params: Params | None = None,
        points_per_side: int | tuple[int, int] | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        stability_score_offset: float | None = None,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
    ) -> None:
        """SAM's arguments and defaults, but for thresholds, whose defaults are `model.config.generator_defaults`.

        SAM's own are 0.88, 0.95 and 1.0, and so are those of all models but `demo`.

        Args:
          model: the segmenter; or the `backend` of a predictor, such as `OnnxPredictor`, whose params are its own.
          params: its params.
          points_per_side: points along each side of the photo, or along its width and its height; None if there are
            `point_grids`.
          points_per_batch: points that are answered at once.
          pred_iou_thresh: masks must have a higher predicted IoU; 0 keeps all.
          stability_score_thresh: masks must be at least as stable; 0 keeps all.
          stability_score_offset: the stability score is the IoU of the masks at the model's threshold plus and minus
            this, in logits.
          box_nms_thresh: of masks of a crop whose boxes have a higher IoU, the one with the best predicted IoU stays.
          crop_n_layers: layers of crops, 2 x 2, 4 x 4 and so on, that are searched besides the whole photo.
          crop_nms_thresh: likewise of masks of different crops, where those of smaller crops stay.
          crop_overlap_ratio: overlap in the first layer, as a fraction of the photo's shorter side; below 1.
          crop_n_points_downscale_factor: layer n has points_per_side / factor^n points a side.
          point_grids: instead of `points_per_side`, an array [N, 2] of (x, y) in [0, 1] for each layer.
          min_mask_region_area: fill holes and drop islands of fewer pixels, then drop new duplicates; 0 does not.
          output_mode: the form of a record's `segmentation`, see `generate`.

        Raises:
          ValueError: an invalid value.
        """
        if output_mode not in get_args(OutputMode):
            raise ValueError(f"output_mode must be one of {', '.join(get_args(OutputMode))}, got {output_mode!r}")
        if not isinstance(model, Sam):
            self._backend: Backend = model
        elif params is None:
            raise ValueError("params of the model are missing; give (model, params), as load returns them")
        else:
            self._backend = JaxBackend(model, params)
        own = self._backend.config.generator_defaults
        self.points_per_batch = read_count("points_per_batch", points_per_batch, least=1)
        self.pred_iou_thresh = read_number("pred_iou_thresh", _given(pred_iou_thresh, own.pred_iou_thresh), -math.inf)
        self.stability_score_thresh = read_number(
            "stability_score_thresh", _given(stability_score_thresh, own.stability_score_thresh), -math.inf
        )
        self.stability_score_offset = read_number(
            "stability_score_offset", _given(stability_score_offset, own.stability_score_offset)
        )
        self.box_nms_thresh = read_number("box_nms_thresh", box_nms_thresh)
        self.crop_n_layers = read_count("crop_n_layers", crop_n_layers)
        self.crop_nms_thresh = read_number("crop_nms_thresh", crop_nms_thresh)
        self.crop_overlap_ratio = read_number("crop_overlap_ratio", crop_overlap_ratio)
        if self.crop_overlap_ratio >= 1:
            raise ValueError(f"crop_overlap_ratio must be at least 0 and below 1, got {crop_overlap_ratio}")
        factor = read_number("crop_n_points_downscale_factor", crop_n_points_downscale_factor, least=1)
        self.point_grids = read_grids(points_per_side, point_grids, self.crop_n_layers, factor)
        self.min_mask_region_area = read_number("min_mask_region_area", min_mask_region_area)
        if math.isinf(self.min_mask_region_area):
            raise ValueError(f"min_mask_region_area must be finite, got {min_mask_region_area}")
        self.output_mode = output_mode
        self.dropped = dict.fromkeys(FILTERS, 0)
        self.predictor = SamPredictor.over(self._backend)

    @property
    def _least_iou(self) -> np.float32:
        return np.float32(self.pred_iou_thresh if self.pred_iou_thresh > 0 else -np.inf)

    def warmup(self, num_images: int = 1) -> None:
        """Compile ahead of the first photo, without computing anything.

        Args:
          num_images: photos that `generate_batch` will be given at once.
        """
        backend = self._backend
        if not isinstance(backend, JaxBackend):
            return
        crops = sum(4**layer for layer in range(self.crop_n_layers + 1))
        backend.warmup_encoder(num_images * crops)
        for count in {self._batch_size(grid) for grid in self.point_grids}:
            backend.warmup_above(_prompts(np.zeros((1, 2), np.float32), count), self._least_iou)

    def generate(self, image: Any) -> list[Record]:
        """The masks of a photo.

        Args:
          image: uint8 RGB [H, W, 3], or what else `SamPredictor.set_image` takes.

        Returns:
          A record for each mask, best predicted IoU first, or with crops those of the smallest crops first; with
          `min_mask_region_area`, masks that it changed come last:
          `segmentation`: bool [H, W]; or COCO's RLE, {size, counts}, with a list or with a string of counts;
          `area` in pixels; `bbox`, XYWH in pixels, from the first to the last pixel; `predicted_iou`;
          `point_coords`, [[x, y]], the prompt in pixels of the photo; `stability_score`;
          `crop_box`, XYWH, the crop that the mask was found in; floats if there are crops, as in SAM's records.
          The list is empty if no mask passes the filters; the attribute `dropped` says how many candidates each of them
          dropped. `predictor` then has the photo set.

        Raises:
          ValueError: the image is no uint8 RGB array, or too small for the crops.
        """
        return self.generate_batch([image])[0]

    def generate_batch(self, images: Sequence[Any], progress: Callable[[int], Any] | None = None) -> list[list[Record]]:
        """`generate` for several images of any sizes.

        Args:
          images: each as `generate` takes it.
          progress: called with a number of points whenever they are answered; `count_points` is their sum.

        Raises:
          ValueError: as `generate`, naming the image.
        """
        transforms.check_several(images, "generate")
        crops: list[_Crop] = []
        pixels: list[UInt8[np.ndarray, "h w 3"]] = []
        for i, image in enumerate(images):
            try:
                pixels.append(transforms.read_image(image))
                crops += self._crops(pixels[i], i)
            except (ValueError, OSError) as error:
                raise type(error)(f"image {i}: {error}" if len(images) > 1 else str(error)) from error
        self.dropped = dict.fromkeys(FILTERS, 0)
        records, whole = [], []
        for i, group in itertools.groupby(self._embed(pixels, crops), key=lambda pair: pair[0].image):
            found = []
            for crop, embedded in group:
                whole += [embedded] if crop.layer == 0 else []
                found.append(self._search(crop, embedded.embedding, progress))
            records.append(self._finish(found, pixels[i].shape[:2]))
        self.predictor.set_embedded(whole)
        return records

    def generate_embedded(self, embedded: EmbeddedImage, progress: Callable[[int], Any] | None = None) -> list[Record]:
        """`generate` for a photo that is embedded, by `SamPredictor.embed` of the same model; `progress` as there.

        Raises:
          ValueError: the generator searches crops, which would have to be embedded too.
        """
        if self.crop_n_layers:
            raise ValueError(f"an embedding is of a whole photo, and crop_n_layers is {self.crop_n_layers}")
        self.dropped = dict.fromkeys(FILTERS, 0)
        height, width = embedded.size
        crop = _Crop(0, embedded.size, (0, 0, width, height), 0)
        self.predictor.set_embedded([embedded])
        return self._finish([self._search(crop, embedded.embedding, progress)], embedded.size)

    def count_points(self, image: Any) -> int:
        """Points that `generate` asks about, in all crops. Raises ValueError as `generate`."""
        return sum(len(self.point_grids[crop.layer]) for crop in self._crops(transforms.read_image(image)))

    def _batch_size(self, grid: np.ndarray) -> int:
        """Points of a grid that are answered at once, padding included."""
        return min(self.points_per_batch, bucket(len(grid)))

    def _crops(self, image: np.ndarray, number: int = 0) -> list[_Crop]:
        size = image.shape[:2]
        boxes = masks.crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        crops = [_Crop(number, size, box, layer) for box, layer in boxes]
        for crop in crops:
            transforms.check_scalable(crop.cut(image), self._backend.config.image_size)
        return crops

    def _embed(self, images: Sequence[np.ndarray], crops: Sequence[_Crop]) -> Iterator[tuple[_Crop, EmbeddedImage]]:
        for start in range(0, len(crops), ENCODE_BATCH):
            group = crops[start : start + ENCODE_BATCH]
            embedded = self.predictor.embed([crop.cut(images[crop.image]) for crop in group])
            yield from zip(group, embedded, strict=True)

    def _search(
        self,
        crop: _Crop,
        embedding: Float[Array, "1 h w c"],
        progress: Callable[[int], Any] | None,
    ) -> list[_Found]:
        """The masks of one crop, without duplicates."""
        config = self._backend.config
        points = self.point_grids[crop.layer] * np.array(crop.size[::-1])
        coords = transforms.apply_coords(points, crop.size, config.image_size)
        upscaler = masks.Upscaler(crop.size, config.image_size, config.low_res_size)
        count = self._batch_size(points)
        found: list[_Found] = []
        for start in range(0, len(points), count):
            prompts = _prompts(coords[start : start + count], count)
            decoded = self._backend.decode_above(embedding, prompts, self._least_iou)
            low_res, predicted = (np.asarray(x)[0] for x in decoded)
            iou = predicted[: len(points) - start]
            self.dropped["pred_iou_thresh"] += int(np.count_nonzero(~(iou > self._least_iou)))
            for i, m in zip(*np.nonzero(iou > self._least_iou), strict=True):
                mask = self._examine(crop, upscaler, low_res[i, m], iou[i, m], points[start + i])
                found += [] if mask is None else [mask]
            if progress is not None:
                progress(len(iou))
        return self._without_duplicates(found, [mask.predicted_iou for mask in found], "box_nms_thresh")

    def _examine(
        self,
        crop: _Crop,
        upscaler: masks.Upscaler,
        low_res_mask: Float[np.ndarray, "s s"],
        predicted_iou: np.float32,
        point: Float[np.ndarray, "2"],
    ) -> _Found | None:
        """The mask in the photo's frame, or None if a filter drops it."""
        mask = upscaler(low_res_mask, self._backend.config.mask_threshold, self.stability_score_offset)
        stability_score = mask.stability_score
        if self.stability_score_thresh > 0 and not stability_score >= self.stability_score_thresh:
            self.dropped["stability_score_thresh"] += 1
            return None
        x, y = mask.runs()
        offset = np.array(crop.box[:2])
        box = masks.runs_to_box(x, y) + np.tile(offset, 2)
        if masks.near_crop_edge(box, crop.box, crop.image_size):
            self.dropped["edge of a crop"] += 1
            return None
        counts = masks.runs_to_counts(x + offset[0], y + offset[1], crop.image_size)
        return _Found(predicted_iou, stability_score, point + offset, box, crop.box, counts)

    def _finish(self, crops: list[list[_Found]], size: tuple[int, int]) -> list[Record]:
        found = list(itertools.chain.from_iterable(crops))
        if len(crops) > 1:
            area = lambda box: np.float32((box[2] - box[0]) * (box[3] - box[1]))
            scores = [1 / area(mask.crop_box) for mask in found]
            found = self._without_duplicates(found, scores, "crop_nms_thresh")
        if self.min_mask_region_area > 0:
            found = self._without_small_regions(found, size)
        return [self._record(mask, size) for mask in found]

    def _without_small_regions(self, found: list[_Found], size: tuple[int, int]) -> list[_Found]:
        cleaned, unchanged = [], []
        for mask in found:
            pixels, changed = masks.remove_small_regions(
                rle.counts_to_mask(mask.counts, size), math.ceil(self.min_mask_region_area)
            )
            if changed:
                box = np.array(masks.box_of(pixels) or (0, 0, 0, 0))
                mask = dataclasses.replace(mask, counts=rle.mask_to_counts(pixels), box=box)
            cleaned.append(mask)
            unchanged.append(np.float32(not changed))  # of duplicates, one that was found as it is stays
        larger = max(("box_nms_thresh", "crop_nms_thresh"), key=lambda name: getattr(self, name))
        return self._without_duplicates(cleaned, unchanged, larger)

    def _without_duplicates(self, found: list[_Found], scores: Sequence[np.float32], threshold: str) -> list[_Found]:
        """`threshold` is the name of the attribute that says how much boxes may overlap."""
        boxes = np.array([mask.box for mask in found]).reshape(-1, 4)
        kept = masks.nms(boxes, np.array(scores, np.float32), getattr(self, threshold))
        self.dropped[threshold] += len(found) - len(kept)
        return [found[i] for i in kept]

    def _record(self, mask: _Found, size: tuple[int, int]) -> Record:
        encode = {
            "binary_mask": rle.counts_to_mask,
            "uncompressed_rle": rle.counts_to_rle,
            "coco_rle": rle.counts_to_coco,
        }
        return {
            "segmentation": encode[self.output_mode](mask.counts, size),
            "area": rle.area(mask.counts),
            "bbox": _xywh(mask.box),
            "predicted_iou": float(mask.predicted_iou),
            "point_coords": [mask.point.tolist()],
            "stability_score": float(mask.stability_score),
            "crop_box": [float(v) if self.crop_n_layers else v for v in _xywh(mask.crop_box)],
        }


@dataclasses.dataclass(frozen=True)
class _Crop:
    image: int
    """Number of its photo."""
    image_size: tuple[int, int]
    """(height, width) of the photo."""
    box: tuple[int, int, int, int]
    """XYXY in the photo, the ends excluded."""
    layer: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        x1, y1, x2, y2 = self.box
        return y2 - y1, x2 - x1

    def cut(self, image: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = self.box
        return image[y1:y2, x1:x2]


@dataclasses.dataclass(frozen=True)
class _Found:
    """A mask in the photo's frame."""

    predicted_iou: np.float32
    stability_score: np.float32
    point: Float[np.ndarray, "2"]
    box: Int[np.ndarray, "4"]
    """XYXY, the last pixels included."""
    crop_box: tuple[int, int, int, int]
    counts: rle.Counts


def _prompts(coords: Float[np.ndarray, "p 2"], count: int) -> Prompts:
    """A foreground point each; the last one is repeated until there are `count`."""
    padded = np.pad(coords, ((0, count - len(coords)), (0, 0)), mode="edge")[None, :, None]
    shape = padded.shape[:3]
    return Prompts(padded, np.ones(shape, np.int32), np.ones(shape, bool))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _xywh(box: Sequence[int] | np.ndarray) -> list[int]:
    x1, y1, x2, y2 = (int(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]

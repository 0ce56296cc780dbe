"""`SamAutomaticMaskGenerator`: masks of everything on a photo (facebookresearch/segment-anything), over `Sam`.

The official class's arguments, filters and records. Deliberate differences: it takes `(model, params)`;
`generate_batch` serves many images; crops and images are encoded several at once; prompts whose masks all fail the
predicted-IoU filter are never turned into masks; a photo without any mask gives an empty list; invalid values
are errors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from .. import transforms
from ..models.model import Params
from ..models.prompt_encoder import Prompts
from ..models.sam import Sam
from . import masks, rle
from .backends import ENCODE_BATCH, JaxBackend
from .predictor import SamPredictor
from .prompts import bucket

# Module-level, so that all generators of one model share their compiled programs.
_decode = jax.jit(Sam.decode, static_argnums=0)

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Record = dict[str, Any]


class SamAutomaticMaskGenerator:
    """Prompts with a grid of points, then drops poor masks and duplicates.

        generator = SamAutomaticMaskGenerator(*repvit_sam_jax.load("repvit_sam.safetensors"))
        records = generator.generate(photo)

    Programs are compiled for batches of points and for the encoder, whatever the sizes of the photos.
    """

    def __init__(
        self,
        model: Sam,
        params: Params,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
    ) -> None:
        """SAM's arguments and defaults.

        Args:
          model: the segmenter.
          params: its params.
          points_per_side: points along one side of the photo; None if there are `point_grids`.
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
        least: dict[str, tuple[float, int]] = {
            "points_per_batch": (points_per_batch, 1),
            "crop_n_layers": (crop_n_layers, 0),
        }
        least |= {
            "crop_n_points_downscale_factor": (crop_n_points_downscale_factor, 1),
            "stability_score_offset": (stability_score_offset, 0),
            "min_mask_region_area": (min_mask_region_area, 0),
        }
        least |= {"box_nms_thresh": (box_nms_thresh, 0), "crop_nms_thresh": (crop_nms_thresh, 0)}
        for name, (value, minimum) in least.items():
            if not value >= minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        whole = {"points_per_batch": points_per_batch, "crop_n_layers": crop_n_layers}
        if points_per_side is not None:
            whole["points_per_side"] = points_per_side
        for name, value in whole.items():
            if not math.isfinite(value) or value != int(value):
                raise ValueError(f"{name} must be an integer, got {value}")
        if math.isinf(min_mask_region_area):
            raise ValueError(f"min_mask_region_area must be finite, got {min_mask_region_area}")
        if math.isnan(pred_iou_thresh) or math.isnan(stability_score_thresh):
            raise ValueError(f"thresholds must be numbers, got {pred_iou_thresh} and {stability_score_thresh}")
        if not 0 <= crop_overlap_ratio < 1:
            raise ValueError(f"crop_overlap_ratio must be at least 0 and below 1, got {crop_overlap_ratio}")
        self.point_grids = _read_grids(points_per_side, point_grids, int(crop_n_layers), crop_n_points_downscale_factor)
        self._backend = JaxBackend(model, params)
        self.predictor = SamPredictor.over(self._backend)
        self.points_per_batch = int(points_per_batch)
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = int(crop_n_layers)
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    @property
    def _least_iou(self) -> np.float32:
        return np.float32(self.pred_iou_thresh if self.pred_iou_thresh > 0 else -np.inf)

    def warmup(self, num_images: int = 1) -> None:
        """Compile ahead of the first photo, without computing anything.

        Args:
          num_images: photos that `generate_batch` will be given at once.
        """
        backend = self._backend
        crops = sum(4**layer for layer in range(self.crop_n_layers + 1))
        backend.warmup_encoder(num_images * crops)
        for count in {self._batch_size(grid) for grid in self.point_grids}:
            prompts = _prompts(np.zeros((1, 2), np.float32), count)
            given = backend.model, backend.params, backend.no_embedding(), prompts
            _decode.lower(*given, iou_threshold=self._least_iou).compile()

    def generate(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Record]:
        """The masks of a photo.

        Args:
          image: uint8 RGB [H, W, 3].

        Returns:
          A record for each mask, best predicted IoU first, or with crops those of the smallest crops first; with
          `min_mask_region_area`, masks that it changed come last:
          `segmentation`: bool [H, W]; or COCO's RLE, {size, counts}, with a list or with a string of counts;
          `area` in pixels; `bbox`, XYWH in pixels, from the first to the last pixel; `predicted_iou`;
          `point_coords`, [[x, y]], the prompt in pixels of the photo; `stability_score`;
          `crop_box`, XYWH, the crop that the mask was found in.
          The list is empty if no mask passes the filters.

        Raises:
          ValueError: the image is no uint8 RGB array, or too small for the crops.
        """
        return self.generate_batch([image])[0]

    def generate_batch(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], progress: Callable[[int], Any] | None = None
    ) -> list[list[Record]]:
        """`generate` for several images of any sizes.

        Args:
          images: uint8 RGB [H, W, 3] each.
          progress: called with a number of points whenever they are answered; `count_points` is their sum.

        Raises:
          ValueError: as `generate`, naming the image.
        """
        transforms.check_several(images, "generate")
        crops: list[_Crop] = []
        for i, image in enumerate(images):
            try:
                crops += self._crops(image, i)
            except ValueError as error:
                raise ValueError(f"image {i}: {error}" if len(images) > 1 else str(error)) from error
        records = []
        for i, group in itertools.groupby(self._embed(images, crops), key=lambda pair: pair[0].image):
            found = [self._search(crop, embedding, progress) for crop, embedding in group]
            records.append(self._finish(found, images[i].shape[:2]))
        return records

    def count_points(self, image: UInt8[np.ndarray, "h w 3"]) -> int:
        """Points that `generate` asks about, in all crops. Raises ValueError as `generate`."""
        return sum(len(self.point_grids[crop.layer]) for crop in self._crops(image))

    def _batch_size(self, grid: np.ndarray) -> int:
        """Points of a grid that are answered at once, padding included."""
        return min(self.points_per_batch, bucket(len(grid)))

    def _crops(self, image: np.ndarray, number: int = 0) -> list[_Crop]:
        transforms.check_image(image)
        size = image.shape[:2]
        boxes = masks.crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        crops = [_Crop(number, size, box, layer) for box, layer in boxes]
        for crop in crops:
            transforms.check_scalable(crop.cut(image), self._backend.config.image_size)
        return crops

    def _embed(self, images: Sequence[np.ndarray], crops: Sequence[_Crop]) -> Iterator[tuple[_Crop, Array]]:
        for start in range(0, len(crops), ENCODE_BATCH):
            group = crops[start : start + ENCODE_BATCH]
            embeddings = self.predictor.embed([crop.cut(images[crop.image]) for crop in group])
            yield from zip(group, embeddings, strict=True)

    def _search(
        self,
        crop: _Crop,
        embedding: Float[Array, "1 h w c"],
        progress: Callable[[int], Any] | None,
    ) -> list[_Found]:
        """The masks of one crop, without duplicates."""
        model, params, config = self._backend.model, self._backend.params, self._backend.config
        points = self.point_grids[crop.layer] * np.array(crop.size[::-1])
        coords = transforms.apply_coords(points, crop.size, config.image_size)
        upscaler = masks.Upscaler(crop.size, config.image_size, config.low_res_size)
        count = self._batch_size(points)
        found: list[_Found] = []
        for start in range(0, len(points), count):
            prompts = _prompts(coords[start : start + count], count)
            decoded = _decode(model, params, embedding, prompts, iou_threshold=self._least_iou)
            low_res, predicted = (np.asarray(x)[0] for x in decoded)
            iou = predicted[: len(points) - start]
            for i, m in zip(*np.nonzero(iou > self._least_iou), strict=True):
                mask = self._examine(crop, upscaler, low_res[i, m], iou[i, m], points[start + i])
                found += [] if mask is None else [mask]
            if progress is not None:
                progress(len(iou))
        return _without_duplicates(found, [mask.predicted_iou for mask in found], self.box_nms_thresh)

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
            return None
        x, y = mask.runs()
        offset = np.array(crop.box[:2])
        box = masks.runs_to_box(x, y) + np.tile(offset, 2)
        if masks.near_crop_edge(box, crop.box, crop.image_size):
            return None
        counts = masks.runs_to_counts(x + offset[0], y + offset[1], crop.image_size)
        return _Found(predicted_iou, stability_score, point + offset, box, crop.box, counts)

    def _finish(self, crops: list[list[_Found]], size: tuple[int, int]) -> list[Record]:
        found = list(itertools.chain.from_iterable(crops))
        if len(crops) > 1:
            area = lambda box: np.float32((box[2] - box[0]) * (box[3] - box[1]))
            found = _without_duplicates(found, [1 / area(mask.crop_box) for mask in found], self.crop_nms_thresh)
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
        return _without_duplicates(cleaned, unchanged, max(self.box_nms_thresh, self.crop_nms_thresh))

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
            "crop_box": _xywh(mask.crop_box),
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


def _without_duplicates(found: list[_Found], scores: Sequence[np.float32], iou_threshold: float) -> list[_Found]:
    boxes = np.array([mask.box for mask in found]).reshape(-1, 4)
    return [found[i] for i in masks.nms(boxes, np.array(scores, np.float32), iou_threshold)]


def _prompts(coords: Float[np.ndarray, "p 2"], count: int) -> Prompts:
    """A foreground point each; the last one is repeated until there are `count`."""
    padded = np.pad(coords, ((0, count - len(coords)), (0, 0)), mode="edge")[None, :, None]
    shape = padded.shape[:3]
    return Prompts(padded, np.ones(shape, np.int32), np.ones(shape, bool))


def _xywh(box: Sequence[int] | np.ndarray) -> list[int]:
    x1, y1, x2, y2 = (int(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _read_grids(
    points_per_side: int | None, given: Sequence[np.ndarray] | None, num_layers: int, downscale_factor: int
) -> list[Float[np.ndarray, "n 2"]]:
    """A grid for the photo and for each layer of crops; ValueError if one is invalid."""
    if (points_per_side is None) == (given is None):
        raise ValueError(
            "give either points_per_side or point_grids, with points_per_side=None; got "
            + ("neither" if given is None else "both")
        )
    if given is None:
        sides = [int(points_per_side / downscale_factor**layer) for layer in range(num_layers + 1)]
        if empty := [layer for layer, side in enumerate(sides) if side < 1]:
            raise ValueError(
                f"points_per_side={points_per_side} leaves no points in layer {empty[0]}; use more, or a smaller "
                "crop_n_points_downscale_factor"
            )
        return [masks.point_grid(side) for side in sides]
    if len(given) <= num_layers:
        raise ValueError(
            f"point_grids has {len(given)} grids; crop_n_layers={num_layers} needs {num_layers + 1}, one for the whole "
            "image and one for each layer"
        )
    grids = [np.asarray(grid, np.float64) for grid in given[: num_layers + 1]]
    for layer, grid in enumerate(grids):
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(f"point_grids[{layer}] must have shape [N, 2] with at least one point, got {grid.shape}")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError(f"point_grids[{layer}] must lie in [0, 1], as fractions of the image's width and height")
    return grids

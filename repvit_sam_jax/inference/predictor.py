"""`SamPredictor`: SAM's interactive interface (facebookresearch/segment-anything, `predictor.py`) over `Sam`.

Deliberate differences from the official class: embeddings are channels last; many prompts on one image go into one
`predict` call; `set_image_batch` and `predict_batch` (named as in SAM 2) serve many images; prompts are checked.
`predict_torch`, `set_torch_image` and `transform` are not there: `predict` takes boxes [P, 4] in pixels of the photo.
"""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from .. import transforms
from ..models.model import Params
from ..models.sam import Sam
from .backends import DECODE_BATCH, ENCODE_BATCH, Backend, JaxBackend
from .embeddings import read_embedding, write_embedding
from .prompts import Prompt, pack, read_prompts

Prediction = tuple[
    Bool[np.ndarray, "*p c h w"] | Float[np.ndarray, "*p c h w"],
    Float[np.ndarray, "*p c"],
    Float[np.ndarray, "*p c h4 w4"],
]
"""Masks (or logits) at the photo's size, predicted IoUs, low-res logits."""


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """What is kept of an image."""

    embedding: Float[Array, "1 h w c"]
    size: tuple[int, int]
    """(height, width) in pixels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dispatched:
    """Prompts that are being computed."""

    size: tuple[int, int]
    """(height, width) of their photo."""
    single: bool
    """Whether they were given as one prompt, without a leading axis."""
    chunks: list[tuple[int, Any, Any]]
    """Number of prompts, low-res masks and predicted IoUs."""


class SamPredictor:
    """Embeds an image once, then answers prompts about it.

    Numbers of points and prompts are padded to powers of two, images to S x S, so that a session compiles a handful
    of programs whatever it is asked. Threads should each have a predictor of their own, at no cost in memory, since
    the params are shared: the image that is set is the predictor's, whichever thread set it.

        predictor = SamPredictor(*repvit_sam_jax.load("repvit_sam.safetensors"))
        predictor.set_image(photo)
        masks, iou_predictions, low_res_masks = predictor.predict(point_coords=[[500, 375]], point_labels=[1])
    """

    def __init__(self, model: Sam, params: Params) -> None:
        self._use(JaxBackend(model, params))

    @classmethod
    def over(cls, backend: Backend) -> SamPredictor:
        """The predictor over another encoder and decoder than JAX's."""
        predictor = SamPredictor.__new__(SamPredictor)
        predictor._use(backend)
        return predictor

    def _use(self, backend: Backend) -> None:
        self.backend, self.config = backend, backend.config
        self.reset_image()

    @property
    def model(self) -> Sam:
        """The model in JAX. Raises AttributeError over another backend, which has none."""
        return self.backend.model  # type: ignore[attr-defined]

    @property
    def params(self) -> Params:
        """Its parameters, likewise; kernels are in half precision if that changes no result (`Sam.compact`)."""
        return self.backend.params  # type: ignore[attr-defined]

    def reset_image(self) -> None:
        """Forget the current image or images."""
        self._images: list[EmbeddedImage] = []

    def warmup(self, num_points: int = 1, multimask_output: bool = True, num_images: int = 1) -> None:
        """Compile ahead of the first photo, without computing anything.

        Args:
          num_points: points of the prompts to come; a box counts as two.
          multimask_output: as it will be given to `predict`.
          num_images: images that `set_image_batch` will be given at once.
        """
        self.backend.warmup(num_points, multimask_output, num_images)

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image to predict on."""
        return bool(self._images)

    @property
    def embedded(self) -> EmbeddedImage:
        """What is kept of the current image. Raises RuntimeError if no image is set, or several are."""
        images = self._require_images()
        if len(images) > 1:
            raise RuntimeError(f"{len(images)} images are set: use predict_batch")
        return images[0]

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the current image in pixels."""
        return self.embedded.size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the current image after resizing, before padding."""
        return transforms.resized_shape(*self.original_size, self.config.image_size)

    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Embed an image.

        Args:
          image: uint8 [H, W, 3]: a NumPy array or anything that NumPy makes one of; or a Pillow image, or a path, which
            become RGB as `transforms.load_image` says.
          image_format: order of an array's channels, `RGB` or `BGR`.

        Raises:
          ValueError: the image has another shape or type; the image set before, if any, stays set.
        """
        self.set_image_batch([image], image_format)

    def set_image_batch(self, images: Sequence[Any], image_format: str = "RGB") -> None:
        """Embed several images of any sizes, for `predict_batch`.

        Raises:
          ValueError: as `set_image`, naming the image, or the list is empty.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format must be RGB or BGR, got {image_format!r}")
        transforms.check_several(images, "set_image")
        if not len(images):
            raise ValueError("no images were given")
        read = []
        for i, image in enumerate(images):
            try:
                read.append(transforms.read_image(image, image_format == "BGR"))
                transforms.check_scalable(read[-1], self.config.image_size)
            except (ValueError, OSError) as error:
                raise type(error)(f"image {i}: {error}" if len(images) > 1 else str(error)) from error
        self.set_embedded(self.embed(read))

    def set_embedded(self, images: Sequence[EmbeddedImage]) -> None:
        """Use what `embed` gave in place of images."""
        self._images = list(images)

    def embed(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[EmbeddedImage]:
        """Embeddings of RGB images, which are not set. Raises ValueError as `transforms.preprocess`."""
        embeddings: list[Array] = []
        for start in range(0, len(images), ENCODE_BATCH):
            batch = transforms.preprocess(images[start : start + ENCODE_BATCH], self.config.image_size)
            embeddings += self.backend.encode(batch)
        pairs = zip(embeddings, images, strict=True)
        return [EmbeddedImage(embedding, image.shape[:2]) for embedding, image in pairs]

    def get_image_embedding(self) -> Float[Array, "1 h w c"]:
        """The embedding of the current image, float32 [1, S/16, S/16, C] (SAM's has its channels first).

        Raises:
          RuntimeError: no image is set, or several are.
        """
        return self.embedded.embedding

    def set_image_embedding(self, embedding: Float[Array, "1 h w c"], original_size: tuple[int, int]) -> None:
        """Use a stored embedding in place of an image; `load_embedding` reads one from a file, and knows its model.

        Args:
          embedding: [1, S/16, S/16, C] or [S/16, S/16, C] from `get_image_embedding`.
          original_size: (height, width) of the photo that it belongs to, in pixels.

        Raises:
          ValueError: another shape, NaN or infinite values, or a size that is not positive.
        """
        self._images = [self._embedded(embedding, original_size)]

    def save_embedding(self, path: str | os.PathLike, embedded: EmbeddedImage | None = None) -> None:
        """Keep the embedding of the current image, or one that `embed` gave, in a file `.npz`; see `embeddings`.

        Raises:
          RuntimeError: no image is set, or several are.
          ValueError, OSError: as `embeddings.write_embedding`.
        """
        image = embedded or self.embedded
        write_embedding(path, np.asarray(image.embedding), image.size, self.backend)

    def load_embedding(self, path: str | os.PathLike) -> None:
        """Use the embedding in a file in place of an image: answers are those that the image gave, bit for bit.

        Raises:
          FileNotFoundError, ValueError: as `read_embedding`; the image set before, if any, stays set.
        """
        self._images = [self.read_embedding(path)]

    def read_embedding(self, path: str | os.PathLike) -> EmbeddedImage:
        """The embedding in a file, which is not set.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no file of `save_embedding`, it is damaged, or made by another image encoder or at another
            image size.
        """
        embedding, size = read_embedding(path, self.backend)
        try:
            return self._embedded(embedding, size)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def _embedded(self, embedding: Any, original_size: tuple[int, int]) -> EmbeddedImage:
        side, dim = self.config.embedding_size, self.config.mask_decoder.embed_dim
        value = jax.numpy.array(embedding, jax.numpy.float32)  # on CPU, asarray may share the caller's memory
        if value.shape not in ((1, side, side, dim), (side, side, dim)):
            raise ValueError(f"the embedding must have shape [1, {side}, {side}, {dim}], got {value.shape}")
        if not jax.numpy.isfinite(value).all():
            raise ValueError("the embedding has NaN or infinite values")
        try:
            height, width = (operator.index(v) for v in original_size)
        except (TypeError, ValueError) as error:
            raise ValueError(f"original_size must be (height, width) in pixels, got {original_size}") from error
        if height < 1 or width < 1 or not all(transforms.resized_shape(height, width, self.config.image_size)):
            raise ValueError(f"original_size must be (height, width) in pixels, got {original_size}")
        return EmbeddedImage(value.reshape(1, side, side, dim), (height, width))

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        return_low_res_only: bool = False,
    ) -> Prediction:
        """Masks of the current image for one prompt, or for P prompts at once.

        Args:
          point_coords: [N, 2] (x, y) in pixels of the photo; for many prompts [P, N, 2] or P arrays [N_i, 2].
          point_labels: [N], [P, N] or P arrays: 1 foreground, 0 background.
          box: [4] or [1, 4], XYXY in pixels; [P, 4] for many. It may reach over the photo's edge.
          mask_input: low-res logits of an earlier prediction, [1, S/4, S/4]; [P, 1, S/4, S/4] for many. Or a binary
            mask, low-res or of the photo's size, which `prompts.read_prompts` makes logits of.
          multimask_output: three masks a prompt, for ambiguous prompts such as a single point; otherwise one.
          return_logits: logits in place of boolean masks.
          return_low_res_only: make no masks of the photo's size, which takes long for large photos; [C, 0, 0] instead.

        Returns:
          masks [C, H, W], predicted IoUs [C] and low-res logits [C, S/4, S/4]; for many prompts with a leading P.
          A box of shape [1, 4] is one prompt, as in SAM; for a leading axis whatever their number, give boxes with
          `point_coords=[[]] * P, point_labels=[[]] * P`.

        Raises:
          RuntimeError: no image is set, or several are.
          ValueError: invalid prompts: see `prompts.read_prompts`.
        """
        image = self.embedded
        prompts, single = read_prompts(point_coords, point_labels, box, mask_input, image.size, self.config)
        return self.fetch(self.dispatch(image, prompts, multimask_output, single), return_logits, return_low_res_only)

    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> list[Prediction]:
        """`predict` for every image of `set_image_batch`.

        Args:
          point_coords_batch: one entry an image, each as `predict` takes it; an entry may be None.
          point_labels_batch: likewise.
          box_batch: likewise.
          mask_input_batch: likewise.
          multimask_output: as in `predict`.
          return_logits: as in `predict`.

        Returns:
          What `predict` returns, an entry an image.

        Raises:
          RuntimeError: no image is set.
          ValueError: a batch has not one entry an image, or an entry is invalid.
        """
        images = self._require_images()
        count = len(images)
        batches = {
            "point_coords_batch": point_coords_batch,
            "point_labels_batch": point_labels_batch,
            "box_batch": box_batch,
            "mask_input_batch": mask_input_batch,
        }
        for name, batch in batches.items():
            if batch is not None and len(batch) != count:
                raise ValueError(f"{name} has {len(batch)} entries for {count} images")
        columns = [[None] * count if batch is None else list(batch) for batch in batches.values()]
        # Everything is dispatched before anything is fetched, so an accelerator never waits for the host.
        started = []
        for i, (image, *given) in enumerate(zip(images, *columns, strict=True)):
            try:
                prompts, single = read_prompts(given[0], given[1], given[2], given[3], image.size, self.config)
            except ValueError as error:
                raise ValueError(f"image {i}: {error}") from error
            started.append(self.dispatch(image, prompts, multimask_output, single))
        return [self.fetch(dispatched, return_logits) for dispatched in started]

    def _require_images(self) -> list[EmbeddedImage]:
        images = self._images  # once: another thread may set others
        if not images:
            raise RuntimeError("no image is set; call set_image, set_image_batch or set_image_embedding first")
        return images

    def dispatch(
        self, image: EmbeddedImage, prompts: Sequence[Prompt], multimask_output: bool, single: bool = False
    ) -> Dispatched:
        """Begin to compute prompts that were checked; `single` leaves the axis of prompts out of the result."""
        chunks = []
        for start in range(0, len(prompts), DECODE_BATCH):
            chunk = prompts[start : start + DECODE_BATCH]
            packed = pack(chunk, image.size, self.config.image_size)
            chunks.append((len(chunk), *self.backend.decode(image.embedding, packed, multimask_output)))
        return Dispatched(image.size, single, chunks)

    def fetch(
        self, dispatched: Dispatched, return_logits: bool = False, return_low_res_only: bool = False
    ) -> Prediction:
        """What `predict` returns, once it is computed."""
        low_res = np.concatenate([np.asarray(masks)[0, :count] for count, masks, _ in dispatched.chunks])
        iou = np.concatenate([np.asarray(iou)[0, :count] for count, _, iou in dispatched.chunks])
        size, config = dispatched.size, self.config
        shape = (*low_res.shape[:2], *((0, 0) if return_low_res_only else size))
        out = np.empty(shape, np.float32 if return_logits else bool)
        for prompt in range(0 if return_low_res_only else len(low_res)):  # one at a time: a photo's logits are large
            logits = transforms.postprocess_masks(low_res[prompt], size, config.image_size)
            out[prompt] = logits if return_logits else logits > config.mask_threshold
        return (out[0], iou[0], low_res[0]) if dispatched.single else (out, iou, low_res)

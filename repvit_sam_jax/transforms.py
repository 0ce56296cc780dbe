"""Between photos and the model's frame: resize, pad, normalise; coordinates and masks there and back.

Exact to the official pipeline (facebookresearch/segment-anything: `ResizeLongestSide`, `Sam.preprocess`,
`Sam.postprocess_masks`): Pillow's bilinear (antialiased) resize to a longest side of S, normalisation, zero
padding at the bottom and right; masks through two bilinear resizes without aligned corners.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from .files import check_no_address

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)


MAX_PIXELS = 89_478_485
"""Pixels from which on Pillow warns of decompression bombs: a photo has no more unless a caller allows it."""


def load_image(
    path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS, stretch: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """A photo file as RGB, the way a person sees it.

    EXIF orientation is applied, grayscale and palettes become RGB, CMYK is converted, and an alpha channel is dropped
    (the colours stay as they are stored). 16-bit grayscale is scaled to 8 bits: all of its range, which a warning says
    is hardly used where that is so, or the part that is used.

    Args:
      path: of the file.
      max_pixels: width times height at most, so that memory is bounded; masks have the photo's size, so that it can't
        be read smaller.
      stretch: whether the lowest and the highest value of 16-bit grayscale become 0 and 255.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is empty, truncated, too large, or no image that Pillow reads.
    """
    path = Path(path)
    check_no_address(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an image")
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    if path.suffix.lower() in (".heic", ".heif"):
        register_heif()
    return decode_image(path, str(path), max_pixels=max_pixels, stretch=stretch)


def register_heif() -> None:
    """Let Pillow read HEIC, the format of phones, if `pillow-heif` is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def decode_image(
    file: Path | BinaryIO | Image.Image, name: str, *, max_pixels: int = MAX_PIXELS, stretch: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """As `load_image`, also from an open binary file or a Pillow image; `name` is what an error calls it.

    Raises:
      ValueError: as `load_image`.
    """
    try:
        with contextlib.nullcontext(file) if isinstance(file, Image.Image) else Image.open(file) as opened:
            width, height = opened.size
            pixels = _to_rgb(opened, name, stretch) if width * height <= max_pixels else None
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read") from error
    except PermissionError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except (_UnknownRangeError, Warning):
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged pixels and tags
        raise ValueError(f"{name} is truncated or damaged: {error}") from error
    if pixels is None:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than {max_pixels}; allow more with max_pixels, --max-pixels "
            "of a command (about 12 bytes of memory each), or scale it down"
        )
    return pixels


_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _MIN_IS_WHITE = 0x112, 258, 262, 0
"""Tags of EXIF and TIFF, and a value of the last one."""


class _UnknownRangeError(ValueError):
    """Pixels whose black and white nobody knows."""


def _to_rgb(opened: Image.Image, name: str, stretch: bool) -> UInt8[np.ndarray, "h w 3"]:
    tags = getattr(opened, "tag_v2", {})
    is_16_bit = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PPM")
    if opened.mode in ("I", "F") and not is_16_bit:
        raise _UnknownRangeError(
            f"{name} has 32-bit pixels (mode {opened.mode}), whose range is unknown; save it as 8-bit"
        )
    image = opened
    if opened.getexif().get(_ORIENTATION, 1) != 1:  # for others, Pillow would copy
        image = ImageOps.exif_transpose(opened)
    if is_16_bit:
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        image = Image.fromarray(_to_8_bits(np.asarray(image, np.uint16), bits, name, stretch))
        if tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE:  # which Pillow heeds at 8 bits alone
            image = ImageOps.invert(image)
    elif image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of a palette with alpha
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_8_bits(values: np.ndarray, bits: int, name: str, stretch: bool) -> UInt8[np.ndarray, "h w"]:
    low, high, white = int(values.min()), int(values.max()), 2**bits - 1
    if stretch and high > low:
        return ((values - low) * (255 / (high - low))).round().astype(np.uint8)
    if 0 < high - low < white / 8:
        warnings.warn(
            f"{name} uses {low} to {high} of {bits}-bit gray, so it has hardly any contrast in 8 bits; "
            "load_image(..., stretch=True) makes these black and white",
            stacklevel=4,
        )
    return (values / (white / 255)).round().astype(np.uint8)


def read_image(image: Any, is_bgr: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of what people hold: a path, a Pillow image, a NumPy array or what NumPy makes one of.

    Args:
      image: paths and Pillow images become RGB as by `load_image`; other arrays are taken as they are.
      is_bgr: whether the channels of an array are to be reversed.

    Raises:
      FileNotFoundError: there is no file at a path.
      ValueError: `load_image` can't read it, or it is no array of pixels.
    """
    if isinstance(image, str | os.PathLike):
        return load_image(image)
    if isinstance(image, Image.Image):
        return decode_image(image, "the image")
    if not isinstance(image, np.ndarray) and hasattr(image, "__array__"):
        image = np.asarray(image)
    check_image(image)
    return image[..., ::-1] if is_bgr else image


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the array is uint8 [H, W, 3] and not empty."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"an image must be a NumPy array [H, W, 3], got {type(image).__name__}")
    if image.ndim == 2:
        raise ValueError(f"the image is grayscale, shape {image.shape}; make it RGB: np.stack([image] * 3, axis=-1)")
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(f"the image has an alpha channel, shape {image.shape}; drop it: image[..., :3]")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must have shape [H, W, 3], got {image.shape}")
    if image.dtype != np.uint8:
        raise ValueError(f"an image must be uint8 with values 0..255, got {image.dtype}")
    if image.size == 0:
        raise ValueError(f"the image is empty, shape {image.shape}")


def check_several(images: Sequence[np.ndarray], single: str) -> None:
    """Raises ValueError if one image is given in place of several; `single` is the method that takes one."""
    if isinstance(images, np.ndarray) and images.ndim in (2, 3):
        raise ValueError(f"images must be a list of images, got an array {images.shape}; {single} takes one image")


def check_normalized(images: Array) -> None:
    """Raises ValueError if images are integers, such as pixels that were not normalised."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, got {images.dtype}; preprocess or normalize makes them")


def resized_shape(height: int, width: int, image_size: int) -> tuple[int, int]:
    """(height, width) after scaling the longer side to `image_size` pixels; halves round up."""
    scale = image_size / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def check_scalable(image: np.ndarray, image_size: int) -> None:
    """Raises ValueError unless it is an image, and scaling it to `image_size` pixels leaves some of its short side."""
    check_image(image)
    if not all(resized_shape(image.shape[0], image.shape[1], image_size)):
        raise ValueError(f"the image is too narrow to scale to {image_size} pixels: shape {image.shape}")


def resize_longest_side(image: UInt8[np.ndarray, "h w 3"], image_size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Scale so that the longer side has `image_size` pixels (Pillow, bilinear, antialiased).

    Raises:
      ValueError: the image is no uint8 RGB array, or so narrow that nothing of its short side would be left.
    """
    check_scalable(image, image_size)
    height, width = resized_shape(image.shape[0], image.shape[1], image_size)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize_and_pad(image: UInt8[np.ndarray, "h w 3"], image_size: int) -> Float[np.ndarray, "s s 3"]:
    """Subtract the mean, divide by the deviation, and pad with zeros at the bottom and right, in float32."""
    height, width = image.shape[:2]
    padded = np.zeros((image_size, image_size, 3), np.float32)
    padded[:height, :width] = (image - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32)
    return padded


def valid_positions(sizes: Int[Any, "b 2"], grid_size: int, image_size: int) -> Bool[Array, "b g g"]:
    """Cells of a square grid over the padded image that hold content and not padding.

    A cell counts if more than half of it is content, along each axis. This is what EdgeSAM's training
    (arXiv 2312.06660) does by shrinking a map of the content bilinearly and comparing with 0.5: a patch of 16 pixels
    counts from 9 rows of content on.

    Args:
      sizes: int [B, 2], (height, width) of the content in the S-frame.
      grid_size: cells a side: S/16 for embeddings, S/4 for low-resolution masks.
      image_size: S.
    """
    middles = (jnp.arange(grid_size) + 0.5) * (image_size / grid_size)
    inside = middles < jnp.asarray(sizes)[..., None]
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def normalize(images: UInt8[Array, "b s s 3"], sizes: Int[Array, "b 2"]) -> Float[Array, "b s s 3"]:
    """`normalize_and_pad` on the device, for images that are padded already; may be traced.

    Args:
      images: resized, and padded at the bottom and right with anything.
      sizes: (height, width) of each one's content, in pixels; (0, 0) gives zeros.

    Returns:
      float32, the padding zero; equal to `normalize_and_pad` up to float32 rounding (XLA multiplies by reciprocals).
    """
    normalized = (images.astype(jnp.float32) - jnp.array(PIXEL_MEAN, jnp.float32)) / jnp.array(PIXEL_STD, jnp.float32)
    rows, columns = (jnp.arange(side) < sizes[:, i, None] for i, side in enumerate(images.shape[1:3]))
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], normalized, 0.0)


def preprocess(images: np.ndarray | Sequence[np.ndarray], image_size: int) -> Float[np.ndarray, "b s s 3"]:
    """Photos to what `Sam.encode` takes.

    Args:
      images: uint8 RGB: one image [H, W, 3], or several, of any sizes.
      image_size: S, the model's `config.image_size`, in pixels.

    Returns:
      float32 [B, S, S, 3], resized, normalised and zero-padded; B is 1 for a single image.

    Raises:
      ValueError: an image is no uint8 RGB array, or too narrow to be scaled.
    """
    if not isinstance(images, Sequence) and np.ndim(images) < 4:
        images = [images]
    if not len(images):
        raise ValueError("no images were given")
    return np.stack([normalize_and_pad(resize_longest_side(image, image_size), image_size) for image in images])


def apply_coords(
    coords: Float[np.ndarray, "*batch 2"], original_size: tuple[int, int], image_size: int
) -> Float[np.ndarray, "*batch 2"]:
    """(x, y) from pixels of the original image, (height, width), to those of the resized one; float64 inside."""
    height, width = original_size
    new_height, new_width = resized_shape(height, width, image_size)
    scale = np.array([new_width / width, new_height / height])
    return (np.asarray(coords, np.float64) * scale).astype(np.float32)


def apply_boxes(
    boxes: Float[np.ndarray, "*batch 4"], original_size: tuple[int, int], image_size: int
) -> Float[np.ndarray, "*batch 4"]:
    """XYXY boxes from the original image's pixels to the resized one's."""
    boxes = np.asarray(boxes)
    return apply_coords(boxes.reshape(*boxes.shape[:-1], 2, 2), original_size, image_size).reshape(boxes.shape)


def resize_bilinear(x: AnyArray, height: int, width: int) -> AnyArray:
    """Bilinear resize of the last two axes without antialiasing and without aligned corners.

    This is `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`; `jax.image.resize` differs, for it
    antialiases when it shrinks. NumPy arrays stay NumPy arrays; JAX arrays may be traced.
    """
    for axis, size in ((-2, height), (-1, width)):
        low, high, weight = _bilinear_taps(x.shape[axis], size)
        shape = (-1, 1) if axis == -2 else (-1,)
        x = x.take(low, axis) * (1 - weight).reshape(shape) + x.take(high, axis) * weight.reshape(shape)
    return x


def _bilinear_taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output position: the two input positions and the second's weight, in PyTorch's float32 arithmetic."""
    scale = np.float32(size) / np.float32(new_size)
    # PyTorch rounds once here (a fused multiply-add); float64 inside does the same.
    position = np.maximum(np.float64(scale) * (np.arange(new_size) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(position.astype(np.int32), size - 1)
    return low, np.minimum(low + 1, size - 1), (position - low).astype(np.float32)


def low_res_cover(masks: Bool[np.ndarray, "*batch h w"], image_size: int) -> Float[np.ndarray, "*batch s4 s4"]:
    """The share of each pixel of the low-resolution frame that masks of a photo cover, exactly; 0 in the padding.

    Args:
      masks: in pixels of the photo.
      image_size: S; a pixel of the result is 4 x 4 of the frame that the photo is scaled to.
    """
    size = masks.shape[-2:]
    cover = masks
    for axis, old, new in zip((-2, -1), size, resized_shape(size[0], size[1], image_size), strict=True):
        edges = np.minimum(np.arange(image_size // 4 + 1) * 4 * old / new, old)
        low = np.minimum(edges.astype(int), old - 1)
        total = np.cumsum(cover, axis, dtype=np.float64)  # up to the end of each pixel
        weight = (edges - low - 1).reshape((-1, 1) if axis == -2 else -1)
        integral = total.take(low, axis) + weight * cover.take(low, axis)
        cover = np.diff(integral, axis=axis) * (new / old / 4)
    return cover


def postprocess_masks(low_res_masks: AnyArray, original_size: tuple[int, int], image_size: int) -> AnyArray:
    """Mask logits in the original image's pixels.

    Args:
      low_res_masks: [..., S/4, S/4] from `Sam.decode`, a NumPy or JAX array.
      original_size: (height, width) of the photo, in pixels; static under `jit`.
      image_size: S.

    Returns:
      Logits [..., height, width]; a mask is where they exceed 0.
    """
    height, width = resized_shape(*original_size, image_size)
    square = resize_bilinear(low_res_masks, image_size, image_size)
    return resize_bilinear(square[..., :height, :width], *original_size)

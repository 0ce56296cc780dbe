"""Encoders and decoders for annotation tools, which call SAM's ONNX files without asking what model is in them.

What `SamPredictor` does around the model is in the graph: photos are normalised and padded, a prompt without a box ends
with the not-a-point and one with a box does not, and one mask is chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from repvit_sam_jax.models.prompt_encoder import NOT_A_POINT, TOP_LEFT

from ..torch_models import Sam
from .modules import Encoder, FullSizeDecoder, hat, positions
from .source import Source

PHOTO = "input_image"
"""Name of the encoders' input."""
FRAME = 1024
"""Longer side that tools scale photos to, in pixels, for any model."""
MASK = (1, 1, FRAME // 4, FRAME // 4)
"""Shape of `mask_input` in tools."""
EMBEDDING = (1, 256, 64, 64)
"""Shape of the published models' embeddings, which CVAT takes for granted."""


def check_fits(source: Source) -> None:
    """Raises ValueError for a model to whose masks and embeddings tools are blind."""
    config = source.config
    if FRAME % config.image_size:
        raise ValueError(
            f"annotation tools know masks of {MASK[2]} x {MASK[2]} pixels, which is no multiple of this model's "
            f"{config.low_res_size}; give --image-size 1024 or 512"
        )


class CanvasEncoder(nn.Module):
    """A picture [H, W, 3] in RGB, 0..255, with black beside and below the photo, to [1, C + 1, S/16, S/16].

    AnyLabeling puts each photo into a canvas of 1024 x 684, in which SAM would see one of 3:4 at two thirds its size.
    Here rows and columns at the end that are wholly black are left out, and the rest is scaled to S, as Pillow does it.
    The last channel begins with the photo's height and width and the picture's, for `CanvasDecoder`.
    """

    def __init__(self, twin: Sam) -> None:
        super().__init__()
        self.encoder, self.size, self.side = Encoder(twin), twin.config.image_size, twin.config.embedding_size

    def forward(self, input_image: Tensor) -> Tensor:
        images, height, width = self.preprocess(input_image)
        picture = [torch.scalar_tensor(side) for side in input_image.shape[:2]]
        about = torch.stack([height.float(), width.float(), *picture])
        channel = functional.pad(about, (0, self.side**2 - len(about))).reshape(1, 1, self.side, self.side)
        return torch.cat([self.encoder(images), channel], 1)

    def preprocess(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, 3, S, S], scaled, normalised and padded with zeros, and the photo's height and width in the picture."""
        bright = picture.amax(2) > 0
        height, width = (_length(bright.any(axis)) for axis in (1, 0))
        scale = self.size / torch.maximum(height, width)
        rows, columns = (
            self._resampling(count, side, torch.floor(side * scale + 0.5))
            for count, side in zip(picture.shape[:2], (height, width), strict=True)
        )
        scaled = torch.round(rows @ torch.round(picture.permute(2, 0, 1)[None] @ columns.T))
        inside = torch.round(rows.sum(1)[:, None] * columns.sum(1))
        return (scaled - self.encoder.mean) / self.encoder.std * inside, height, width

    def _resampling(self, count: int, side: Tensor, used: Tensor) -> Tensor:
        """[S, count]: bilinear weights of `used` pixels among the first `side`, over all that each covers."""
        index, pixel = torch.arange(self.size, dtype=torch.float64), torch.arange(count) + 0.5
        distance = (pixel - ((index + 0.5) * side / used)[:, None]).abs()
        weights = torch.clamp(1 - distance / torch.clamp(side / used, min=1), min=0) * (pixel < side)
        return (weights / weights.sum(1, keepdim=True).clamp(min=1e-9) * (index < used)[:, None]).float()


class PackedEncoder(nn.Module):
    """A photo [H, W, 3] in RGB, 0..255, its longer side S pixels, to its embedding's values in shape `EMBEDDING`.

    Those of smaller models come first, and zeros after them.
    """

    def __init__(self, twin: Sam) -> None:
        super().__init__()
        self.encoder, self.size = Encoder(twin), twin.config.image_size

    def forward(self, input_image: Tensor) -> Tensor:
        pixels = (input_image.permute(2, 0, 1)[None] - self.encoder.mean) / self.encoder.std
        height, width = input_image.shape[:2]
        embedding = self.encoder(functional.pad(pixels, (0, self.size - width, 0, self.size - height))).reshape(1, -1)
        return functional.pad(embedding, (0, math.prod(EMBEDDING) - embedding.shape[1])).reshape(EMBEDDING)


class OneMaskDecoder(nn.Module):
    """What decoders for tools have in common: one prompt, one mask."""

    def __init__(self, twin: Sam) -> None:
        super().__init__()
        self.full_size, self.image_size = FullSizeDecoder(twin), twin.config.image_size
        side = twin.config.embedding_size
        self.embedding = (1, twin.config.mask_decoder.embed_dim, side, side)
        self.step = FRAME // twin.config.image_size

    def answer(
        self, embedding: Tensor, coords: Tensor, point_labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Low-res logits [1, 1, S/4, S/4] and predicted IoU [1, 1] for points [1, N, 2] in the model's frame.

        Points with label -1 count for nothing, since tools disagree where they belong. The mask is the first of SAM's,
        or for a single point the one of the other three that has the highest predicted IoU.
        """
        labels = torch.cat([point_labels[0], torch.full((1,), float(NOT_A_POINT))])
        has_box = (point_labels >= TOP_LEFT).any()
        used = torch.cat([point_labels[0] > NOT_A_POINT, ~has_box[None]]).nonzero().squeeze(1)
        coords = torch.cat([coords[0], torch.zeros(1, 2)])[used][None]
        low_res, iou = self.full_size.decoder(embedding, coords, labels[used][None], mask, has_mask)
        is_ambiguous = (point_labels > NOT_A_POINT).sum() == 1
        chosen = torch.where(is_ambiguous, 1 + iou[:, 1:].argmax(1), 0)
        return low_res.index_select(1, chosen), iou.index_select(1, chosen)


class CanvasDecoder(OneMaskDecoder):
    """For embeddings of `CanvasEncoder`; coordinates are pixels of the picture that it was given.

    Outputs: `masks` [1, 1, H, W], logits at `orig_im_size`, which is the picture's or that of a photo that fills it;
    `iou_predictions` [1, 1]; and `low_res_masks` [1, 1, S/4, S/4], logits of the picture with S/4 pixels at its longer
    side. `mask_input` is of the model's frame; AnyLabeling leaves it empty.
    """

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        photo, picture = image_embeddings[0, -1].flatten()[:4].double().reshape(2, 2).unbind()
        used = torch.floor(photo * (self.image_size / photo.max()) + 0.5)
        scale = used / photo  # pixels of the model for each of the picture, in (y, x)
        coords = point_coords * scale.flip(0).float()
        mask = mask_input[:, :, :: self.step, :: self.step]
        low_res, iou = self.answer(image_embeddings[:, :-1], coords, point_labels, mask, has_mask)
        size = orig_im_size.double()
        masks = self.full_size.sample(low_res, size, picture / size * scale, used)
        index = torch.arange(low_res.shape[-1])
        per_index = picture.max() / self.image_size * scale
        rows, columns = (hat(positions(index, axis, index[-1]), len(index)) for axis in per_index)
        return masks, iou, rows @ low_res @ columns.T


class CroppingDecoder(OneMaskDecoder):
    """For embeddings of `PackedEncoder`; coordinates are pixels of the photo times 1024 over its longer side.

    Outputs: `masks` [1, 1, h, w], uint8 0 or 1, within the mask's bounds; `iou_predictions` [1, 1]; `low_res_masks`
    [1, 1, 256, 256], logits that `mask_input` takes; and `xtl`, `ytl`, `xbr`, `ybr`, int64 [1] each, the bounds' first
    and last column and row. An empty mask is one pixel, 0.
    """

    def __init__(self, twin: Sam) -> None:
        super().__init__(twin)
        self.threshold = twin.config.mask_threshold

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        embedding = image_embeddings.reshape(1, -1)[:, : math.prod(self.embedding)].reshape(self.embedding)
        mask = mask_input[:, :, :: self.step, :: self.step]
        low_res, iou = self.answer(embedding, point_coords / self.step, point_labels, mask, has_mask)
        inside = self.full_size.resize(low_res, orig_im_size)[0, 0] > self.threshold
        (ytl, ybr), (xtl, xbr) = (_ends(inside.any(axis)) for axis in (1, 0))
        rows, columns = (
            ((index >= first) & (index <= last)).nonzero().squeeze(1)
            for index, first, last in (
                (torch.arange(inside.shape[0]), ytl, ybr),
                (torch.arange(inside.shape[1]), xtl, xbr),
            )
        )
        cropped = inside.to(torch.uint8).index_select(0, rows).index_select(1, columns)[None, None]
        frame = low_res.repeat_interleave(self.step, 2).repeat_interleave(self.step, 3)
        return cropped, iou, frame, xtl, ytl, xbr, ybr


def _ends(used: Tensor) -> tuple[Tensor, Tensor]:
    """First and last index, int64 [1] each, of what is true; 0 and 0 if nothing is."""
    index = torch.arange(used.shape[0])
    last = (index * used).amax(0, keepdim=True)
    return torch.where(used, index, last).amin(0, keepdim=True), last


def _length(used: Tensor) -> Tensor:
    """Number of elements up to the last that is true; 1 if none is."""
    return 1.0 + _ends(used)[1][0].double()

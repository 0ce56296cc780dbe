"""What is exported: the twin's encoder and decoder as modules of tensors alone.

The decoder has the inputs and outputs of SAM's own ONNX export (facebookresearch/segment-anything, `utils/onnx.py`), in
their names and their meaning, for any number of prompts on one image; so what was written for that runs with this.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from repvit_sam_jax.transforms import PIXEL_MEAN, PIXEL_STD

from ..torch_models import Sam

PADDING = tuple(round(value) for value in PIXEL_MEAN)
"""The colour to pad images of 8 bits with at the bottom and right: what is nearest to 0 after normalisation."""
ENCODER_INPUT, ENCODER_OUTPUT = "images", "image_embeddings"
DECODER_INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
DECODER_OUTPUTS = ("low_res_masks", "iou_predictions")
FULL_SIZE_OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
"""The order of SAM's export, which programs unpack by position."""


class Encoder(nn.Module):
    """Images [B, 3, S, S] to embeddings [B, C, S/16, S/16]."""

    mean: Tensor
    std: Tensor
    padding: Tensor

    def __init__(self, twin: Sam, normalise: bool = False):
        """`normalise`: images are pixels 0..255 with `PADDING`; otherwise what `transforms.preprocess` gives."""
        super().__init__()
        self.image_encoder, self.normalise = twin.image_encoder, normalise
        self.global_attention = twin.config.image_encoder.family == "vit"
        for name, values in (("mean", PIXEL_MEAN), ("std", PIXEL_STD), ("padding", PADDING)):
            self.register_buffer(name, torch.tensor(values).float().reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if not self.normalise:
            return self.image_encoder(images)
        pixels = (images - self.mean) / self.std
        if self.global_attention:
            # Every token sees the padding, and feels that whole numbers are not the mean. So what has that colour
            # becomes 0; for a pixel of the photo that is a change by less than 0.01.
            pixels = pixels * torch.clamp((images - self.padding).abs().sum(1, keepdim=True), max=1)
        return self.image_encoder(pixels)


class Decoder(nn.Module):
    """P prompts of N points each on one image.

    Inputs: `image_embeddings` [1, C, S/16, S/16]; `point_coords` [P, N, 2], (x, y) in the resized frame; float
    `point_labels` [P, N]: 1 foreground, 0 background, 2 and 3 a box's corners, -1 the not-a-point that a prompt without
    a box ends with; `mask_input` [1, 1, S/4, S/4], logits that count for all prompts where `has_mask_input` [1] is 1.
    Outputs: `low_res_masks` [P, 4, S/4, S/4], logits, of which the first is the single mask and the others the three of
    an ambiguous prompt, and `iou_predictions` [P, 4].
    """

    image_pe: Tensor
    kinds: Tensor

    def __init__(self, twin: Sam):
        super().__init__()
        prompts = twin.prompt_encoder
        self.prompt_encoder, self.mask_decoder = prompts, twin.mask_decoder
        kinds = torch.cat([prompts.not_a_point_embed.weight, *(e.weight for e in prompts.point_embeddings)])
        self.register_buffer("kinds", kinds.detach())
        self.register_buffer("image_pe", prompts.image_pe().detach())

    def forward(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        prompts = self.prompt_encoder
        position = prompts._position(point_coords) * (point_labels >= 0)[..., None]
        tokens = position + self.kinds[(point_labels + 1).long()]
        no_mask = prompts.no_mask_embed.weight[:, :, None, None]
        dense = has_mask * prompts.mask_downscaling(mask_input) + (1 - has_mask) * no_mask
        return self.mask_decoder(image_embeddings + dense, self.image_pe, tokens)


class FullSizeDecoder(nn.Module):
    """`Decoder` that also takes `orig_im_size` [2], the photo's (height, width), and gives masks of that size first."""

    def __init__(self, twin: Sam):
        super().__init__()
        self.decoder, self.image_size = Decoder(twin), twin.config.image_size

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        low_res, iou = self.decoder(image_embeddings, point_coords, point_labels, mask_input, has_mask)
        return self.resize(low_res, orig_im_size), iou, low_res

    def resize(self, low_res: Tensor, orig_im_size: Tensor) -> Tensor:
        """Low-res logits [..., S/4, S/4] at the photo's (height, width)."""
        size = orig_im_size.double()
        used = torch.floor(size * (self.image_size / size.max()) + 0.5)
        return self.sample(low_res, size, used / size, used)

    def sample(self, low_res: Tensor, size: Tensor, scale: Tensor, used: Tensor) -> Tensor:
        """Low-res logits at (height, width) pixels, each (row, column) `scale` of the model's, which end at `used`."""
        height, width = (cast(int, side.item()) for side in size.long().unbind())
        for side in (height, width):  # sizes of arrays that depend on a value: the exporter wants their range
            torch._check(side >= 1)
            torch._check(side <= 1 << 16)
        rows, columns = (
            self._resampling(low_res.shape[-1], count, *axis)
            for count, *axis in zip((height, width), scale, used, strict=True)
        )
        return rows @ low_res @ columns.T

    def _resampling(self, size: int, count: int, scale: Tensor, used: Tensor) -> Tensor:
        """[count, size]: from `size` to S, crop to `used`, to `count`, bilinear, as one matrix."""
        inner = positions(torch.arange(count), scale, used - 1)
        outer = positions(torch.arange(self.image_size), size / self.image_size, size - 1)
        return hat(inner, self.image_size) @ hat(outer, size)


def positions(index: Tensor, scale: Tensor | float, last: Tensor | int) -> Tensor:
    """Where output pixels lie among the input's, without aligned corners."""
    position = torch.clamp((index.double() + 0.5) * scale - 0.5, min=0)
    return torch.minimum(position, torch.as_tensor(last, dtype=torch.float64))


def hat(positions: Tensor, size: int) -> Tensor:
    """Bilinear weights [positions, size] of the two neighbours."""
    return torch.clamp(1 - (positions[:, None] - torch.arange(size)).abs(), min=0).float()

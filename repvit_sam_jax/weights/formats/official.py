"""ONE table of rules between PyTorch's state-dict keys and paths of this library's params, read in both directions.

A rule is a pair of templates and a layout. `{i}` stands for an integer that both sides share. The rules are a
bijection: no two match the same key, on either side, which the tests check on every preset and form.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

from .layouts import LAYOUTS, Layout


@dataclasses.dataclass(frozen=True)
class Rule:
    """`torch` is a template of a state-dict key, `jax` one of a path joined by slashes."""

    torch: str
    jax: str
    layout: str


def _affine(torch: str, jax: str) -> Iterator[Rule]:
    """A layer norm, or the parameters of a BatchNorm."""
    yield Rule(f"{torch}.weight", f"{jax}/scale", "same")
    yield Rule(f"{torch}.bias", f"{jax}/bias", "same")


def _batch_norm(torch: str, jax: str) -> Iterator[Rule]:
    yield from _affine(torch, jax)
    yield Rule(f"{torch}.running_mean", f"batch_stats/{jax}/mean", "same")
    yield Rule(f"{torch}.running_var", f"batch_stats/{jax}/var", "same")
    yield Rule(f"{torch}.num_batches_tracked", f"batch_stats/{jax}/count", "counter")


def _weighted(torch: str, jax: str, layout: str, bias: bool = True) -> Iterator[Rule]:
    yield Rule(f"{torch}.weight", f"{jax}/kernel", layout)
    if bias:
        yield Rule(f"{torch}.bias", f"{jax}/bias", "same")


def _conv_bn(torch: str, jax: str, layout: str, *, fused: bool = True) -> Iterator[Rule]:
    """Training form `torch.c`, `torch.bn`; and, if `fused`, deploy form: the one convolution `torch`."""
    yield Rule(f"{torch}.c.weight", f"{jax}/conv/kernel", layout)
    yield from _batch_norm(f"{torch}.bn", f"{jax}/bn")
    if fused:
        yield from _weighted(torch, jax, layout)


def _repvit(torch: str, jax: str) -> Iterator[Rule]:
    yield from _conv_bn(f"{torch}.0.0", f"{jax}/stem/conv1", "conv")
    yield from _conv_bn(f"{torch}.0.2", f"{jax}/stem/conv2", "conv")
    torch, jax = f"{torch}.{{i}}", f"{jax}/blocks/{{i}}"
    dw = f"{jax}/token_mixer/dw"
    # A downsampling block's ConvBN, and the fused form of both kinds of block.
    yield from _conv_bn(f"{torch}.token_mixer.0", dw, "depthwise")
    # RepVGGDW: its outer BatchNorm has the same key as the ConvBN's above.
    yield from _conv_bn(f"{torch}.token_mixer.0.conv", f"{dw}/conv3x3", "depthwise", fused=False)
    yield from _weighted(f"{torch}.token_mixer.0.conv1", f"{dw}/conv1x1", "scale")
    yield from _weighted(f"{torch}.token_mixer.1.fc1", f"{jax}/token_mixer/se/fc1", "pointwise")
    yield from _weighted(f"{torch}.token_mixer.1.fc2", f"{jax}/token_mixer/se/fc2", "pointwise")
    yield from _conv_bn(f"{torch}.token_mixer.2", f"{jax}/token_mixer/pw", "pointwise")
    yield from _conv_bn(f"{torch}.channel_mixer.m.0", f"{jax}/channel_mixer/expand", "pointwise")
    yield from _conv_bn(f"{torch}.channel_mixer.m.2", f"{jax}/channel_mixer/project", "pointwise")


def _classifier_heads() -> Iterator[Rule]:
    for torch, jax in (("classifier.classifier", "head"), ("classifier.classifier_dist", "head_dist")):
        yield from _batch_norm(f"{torch}.bn", f"{jax}/bn")
        yield from _weighted(f"{torch}.l", f"{jax}/linear", "linear")
    yield from _weighted("classifier", "head", "linear")  # the one layer that both are fused into


def _tiny_vit_encoder() -> Iterator[Rule]:
    torch, jax = "image_encoder", "image_encoder"
    yield from _conv_bn(f"{torch}.patch_embed.seq.0", f"{jax}/patch_embed/conv1", "conv")
    yield from _conv_bn(f"{torch}.patch_embed.seq.2", f"{jax}/patch_embed/conv2", "conv")
    yield from _affine(f"{torch}.norm_head", f"{jax}/norm_head")
    yield from _weighted(f"{torch}.head", f"{jax}/head", "linear")
    torch, jax = f"{torch}.layers.{{i}}", f"{jax}/layers/{{i}}"
    for name, layout in (("conv1", "pointwise"), ("conv2", "depthwise"), ("conv3", "pointwise")):
        yield from _conv_bn(f"{torch}.downsample.{name}", f"{jax}/downsample/{name}", layout)
        yield from _conv_bn(f"{torch}.blocks.{{j}}.{name}", f"{jax}/blocks/{{j}}/{name}", layout)
    torch, jax = f"{torch}.blocks.{{j}}", f"{jax}/blocks/{{j}}"
    yield Rule(f"{torch}.attn.attention_biases", f"{jax}/attn/attention_biases", "same")
    for name in ("attn.norm", "mlp.norm"):
        yield from _affine(f"{torch}.{name}", f"{jax}/{name.replace('.', '/')}")
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        yield from _weighted(f"{torch}.{name}", f"{jax}/{name.replace('.', '/')}", "linear")
    yield from _conv_bn(f"{torch}.local_conv", f"{jax}/local_conv", "depthwise")


def _vit_encoder() -> Iterator[Rule]:
    torch, jax = "image_encoder", "image_encoder"
    yield Rule(f"{torch}.pos_embed", f"{jax}/pos_embed", "embedding")
    yield from _weighted(f"{torch}.patch_embed.proj", f"{jax}/patch_embed", "conv")
    torch, jax = f"{torch}.blocks.{{i}}", f"{jax}/blocks/{{i}}"
    for name in ("norm1", "norm2"):
        yield from _affine(f"{torch}.{name}", f"{jax}/{name}")
    for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"):
        yield from _weighted(f"{torch}.{name}", f"{jax}/{name.replace('.', '/')}", "linear")
    for name in ("rel_pos_h", "rel_pos_w"):
        yield Rule(f"{torch}.attn.{name}", f"{jax}/attn/{name}", "same")


def _neck() -> Iterator[Rule]:
    torch, jax = "image_encoder.neck", "image_encoder/neck"
    yield from _weighted(f"{torch}.0", f"{jax}/conv1", "pointwise", bias=False)
    yield from _affine(f"{torch}.1", f"{jax}/norm1")
    yield from _weighted(f"{torch}.2", f"{jax}/conv2", "conv", bias=False)
    yield from _affine(f"{torch}.3", f"{jax}/norm2")


def _prompt_encoder() -> Iterator[Rule]:
    torch, jax = "prompt_encoder", "prompt_encoder"
    yield Rule(f"{torch}.pe_layer.positional_encoding_gaussian_matrix", f"{jax}/position/gaussian_matrix", "same")
    yield Rule(f"{torch}.point_embeddings.{{i}}.weight", f"{jax}/point_embeddings/{{i}}", "embedding")
    yield Rule(f"{torch}.not_a_point_embed.weight", f"{jax}/not_a_point", "embedding")
    yield Rule(f"{torch}.no_mask_embed.weight", f"{jax}/no_mask", "embedding")
    torch, jax = f"{torch}.mask_downscaling", f"{jax}/mask_downscaling"
    yield from _weighted(f"{torch}.0", f"{jax}/conv1", "conv")
    yield from _affine(f"{torch}.1", f"{jax}/norm1")
    yield from _weighted(f"{torch}.3", f"{jax}/conv2", "conv")
    yield from _affine(f"{torch}.4", f"{jax}/norm2")
    yield from _weighted(f"{torch}.6", f"{jax}/conv3", "pointwise")


def _attention(torch: str, jax: str) -> Iterator[Rule]:
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _weighted(f"{torch}.{name}", f"{jax}/{name}", "linear")


def _mask_decoder() -> Iterator[Rule]:
    torch, jax = "mask_decoder", "mask_decoder"
    yield Rule(f"{torch}.iou_token.weight", f"{jax}/iou_token", "same")
    yield Rule(f"{torch}.mask_tokens.weight", f"{jax}/mask_tokens", "same")
    yield from _weighted(f"{torch}.output_upscaling.0", f"{jax}/output_upscaling/conv1", "conv_transpose")
    yield from _affine(f"{torch}.output_upscaling.1", f"{jax}/output_upscaling/norm")
    yield from _weighted(f"{torch}.output_upscaling.3", f"{jax}/output_upscaling/conv2", "conv_transpose")
    yield from _weighted(
        f"{torch}.output_hypernetworks_mlps.{{i}}.layers.{{j}}", f"{jax}/hypernetworks/{{i}}/layers/{{j}}", "linear"
    )
    yield from _weighted(f"{torch}.iou_prediction_head.layers.{{i}}", f"{jax}/iou_head/layers/{{i}}", "linear")
    torch, jax = f"{torch}.transformer", f"{jax}/transformer"
    yield from _attention(f"{torch}.final_attn_token_to_image", f"{jax}/final_attn_token_to_image")
    yield from _affine(f"{torch}.norm_final_attn", f"{jax}/norm_final_attn")
    torch, jax = f"{torch}.layers.{{i}}", f"{jax}/layers/{{i}}"
    for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
        yield from _attention(f"{torch}.{name}", f"{jax}/{name}")
    for i in range(1, 5):
        yield from _affine(f"{torch}.norm{i}", f"{jax}/norm{i}")
    for i in (1, 2):
        yield from _weighted(f"{torch}.mlp.lin{i}", f"{jax}/mlp/layers/{i - 1}", "linear")


RULES: tuple[Rule, ...] = (
    *_repvit("image_encoder.features", "image_encoder"),
    *_vit_encoder(),
    *_tiny_vit_encoder(),
    *_neck(),
    *_prompt_encoder(),
    *_mask_decoder(),
    *_repvit("features", "backbone"),
    *_classifier_heads(),
)


class _Direction:
    """Compiled rules from one side to the other."""

    def __init__(self, pairs: Iterable[tuple[str, str, str]]):
        self._rules = []
        for source, target, layout in pairs:
            pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(source))
            self._rules.append((re.compile(pattern), target, LAYOUTS[layout]))

    def __call__(self, key: str) -> list[tuple[str, Layout]]:
        """Every (key of the other side, layout) that a rule gives: one, or none for a foreign key."""
        matches = ((pattern.fullmatch(key), target, layout) for pattern, target, layout in self._rules)
        return [(target.format(**match.groupdict()), layout) for match, target, layout in matches if match]


torch_to_jax = _Direction((r.torch, r.jax, r.layout) for r in RULES)
jax_to_torch = _Direction((r.jax, r.torch, r.layout) for r in RULES)

"""Mistakes in what the models compute: layers, encoders, prompt encoder, decoder, fused forms."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LAYERS = "repvit_sam_jax/models/layers.py"
_DECODER = "repvit_sam_jax/models/mask_decoder.py"
_PROMPTS = "repvit_sam_jax/models/prompt_encoder.py"
_TRANSFORMER = "repvit_sam_jax/models/transformer.py"
_BATCH_NORM = (
    "tests/repvit_sam_jax/models/test_layers.py::test_batch_norm_follows_pytorch_through_training_and_evaluation"
)
_STEM = "tests/repvit_sam_jax/ops/test_stem.py::test_stem_in_strips_and_in_blocks_equals_the_whole"
_PYTORCH = "tests/repvit_sam_jax/models/test_decoder.py::test_equals_pytorch"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="gelu-by-tanh",
        file="repvit_sam_jax/ops/activations.py",
        old="return 0.5 * wide * (1.0 + lax.erf(wide * 0.7071067811865476))",
        new="return jax.nn.gelu(wide)",
        tests=("tests/repvit_sam_jax/ops/test_activations.py::test_gelu_is_the_exact_one",),
    ),
    Mutant(
        name="running-variance-biased",
        file=_LAYERS,
        old="lax.stop_gradient(var) * (n / (n - 1)))",
        new="lax.stop_gradient(var))",
        tests=(_BATCH_NORM,),
    ),
    Mutant(
        name="batch-norm-momentum-reversed",
        file=_LAYERS,
        old="keep, new = 1 - self.momentum, self.momentum",
        new="keep, new = self.momentum, 1 - self.momentum",
        tests=(_BATCH_NORM,),
    ),
    Mutant(
        name="batch-norm-count-lost",
        file=_LAYERS,
        old="self.count.set_value(self.count[...] + 1)",
        new="self.count.set_value(self.count[...])",
        tests=(
            _BATCH_NORM,
            "tests/repvit_sam_jax/models/test_sam.py::test_encode_train_returns_statistics_and_leaves_params",
        ),
    ),
    Mutant(
        name="neck-layer-norm-epsilon",
        file=_LAYERS,
        old="self.norm1 = LayerNorm(cout, epsilon=1e-6, dtype=dtype, rngs=rngs)",
        new="self.norm1 = LayerNorm(cout, epsilon=1e-5, dtype=dtype, rngs=rngs)",
        tests=("tests/repvit_sam_jax/models/test_layers.py::test_norms_of_the_neck_equal_pytorch",),
    ),
    Mutant(
        name="gates-of-chunks-interleaved",
        file="repvit_sam_jax/ops/chunks.py",
        old="jnp.repeat(gate, h * w // size, axis=0)",
        new="jnp.tile(gate, (h * w // size, 1))",
        tests=("tests/repvit_sam_jax/ops/test_chunks.py::test_over_pixels_equals_all_at_once",),
    ),
    Mutant(
        name="stem-strip-sees-padding",
        file="repvit_sam_jax/ops/stem.py",
        old="+ i > 0, middle, 0)",
        new="+ i >= 0, middle, 0)",
        tests=(_STEM,),
    ),
    Mutant(
        name="stem-blocks-shifted-by-a-pixel",
        file="repvit_sam_jax/ops/stem.py",
        old="places = [(2 * size - 1 + 2 * i, 2 * size - 2 - 2 * i)",
        new="places = [(2 * size - 2 + 2 * i, 2 * size - 1 - 2 * i)",
        tests=(_STEM,),
    ),
    Mutant(
        name="squeeze-excite-not-multiplied",
        file="repvit_sam_jax/models/encoders/repvit.py",
        old="self.channel_mixer(x if gate is None else x * gate[:, None, None], train)",
        new="self.channel_mixer(x, train)",
        tests=("tests/repvit_sam_jax/weights/test_reparam.py::test_whole_encoder_per_stage",),
    ),
    Mutant(
        name="another-stage-is-stride-adjusted",
        file="repvit_sam_jax/config.py",
        old="stride = self.last_stride if stage == last else 2",
        new="stride = self.last_stride if stage == last - 1 else 2",
        tests=("tests/repvit_sam_jax/test_config.py::test_only_the_last_downsampling_block_is_stride_adjusted",),
    ),
    Mutant(
        name="statistics-of-scanned-blocks-reversed",
        file="repvit_sam_jax/models/encoders/blocks.py",
        old="for group, (_, statistics) in zip(groups, per_group, strict=True):",
        new="for group, (_, statistics) in zip(groups, per_group[::-1], strict=True):",
        tests=("tests/repvit_sam_jax/models/test_sam.py::test_scanned_blocks_equal_blocks_one_by_one",),
    ),
    Mutant(
        name="windows-padded-in-front",
        file="repvit_sam_jax/models/encoders/blocks.py",
        old="jnp.pad(x, ((0, 0), (0, padding), (0, padding), (0, 0)))",
        new="jnp.pad(x, ((0, 0), (padding, 0), (padding, 0), (0, 0)))",
        tests=("tests/repvit_sam_jax/models/encoders/test_tiny_vit.py::test_windows_equal_a_loop",),
    ),
    Mutant(
        name="attention-biases-by-columns",
        file="repvit_sam_jax/models/encoders/tiny_vit.py",
        old="window * np.abs(y[:, None] - y) + np.abs(x[:, None] - x)",
        new="window * np.abs(x[:, None] - x) + np.abs(y[:, None] - y)",
        tests=("tests/repvit_sam_jax/models/encoders/test_tiny_vit.py::test_biases_follow_the_official_enumeration",),
    ),
    Mutant(
        name="relative-positions-reversed",
        file="repvit_sam_jax/models/encoders/vit.py",
        old="np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1",
        new="np.arange(size)[None, :] - np.arange(size)[:, None] + size - 1",
        tests=("tests/repvit_sam_jax/models/encoders/test_vit.py::test_attention_equals_pytorch",),
    ),
    Mutant(
        name="chunks-of-queries-out-of-order",
        file="repvit_sam_jax/models/encoders/vit.py",
        old="out.transpose(1, 2, 0, 3, 4)",
        new="out.transpose(1, 2, 3, 0, 4)",
        tests=("tests/repvit_sam_jax/models/encoders/test_vit.py::test_queries_in_chunks_give_the_same",),
    ),
    Mutant(
        name="not-a-point-is-padding",
        file=_PROMPTS,
        old="return position + kinds[labels + 1], valid",
        new="return position + kinds[labels + 1], valid & (labels != NOT_A_POINT)",
        tests=("tests/repvit_sam_jax/models/test_sam.py::test_not_a_point_is_no_padding", f"{_PYTORCH}[point-True]"),
    ),
    Mutant(
        name="corners-of-boxes-exchanged",
        file=_PROMPTS,
        old="jnp.array([TOP_LEFT, BOTTOM_RIGHT], labels.dtype)",
        new="jnp.array([BOTTOM_RIGHT, TOP_LEFT], labels.dtype)",
        tests=("tests/repvit_sam_jax/models/test_sam.py::test_corner_labels_say_what_boxes_say",),
    ),
    Mutant(
        name="points-at-corners-of-pixels",
        file=_PROMPTS,
        old="return jnp.where(placed, coords + 0.5, 0.0), labels, valid",
        new="return jnp.where(placed, coords, 0.0), labels, valid",
        tests=("tests/repvit_sam_jax/models/test_sam.py::test_positional_encoding_against_float64",),
    ),
    Mutant(
        name="mask-prompt-ignored",
        file="repvit_sam_jax/models/sam.py",
        old="None if prompts.masks is None else jnp.asarray(prompts.masks)",
        new="None",
        tests=(f"{_PYTORCH}[masks alone, one prompt-True]",),
    ),
    Mutant(
        name="padding-tokens-are-attended",
        file=_TRANSFORMER,
        old="jnp.where(key_valid[:, :, None, None, :], logits, -jnp.inf)",
        new="jnp.where(key_valid[:, :, None, None, :], logits, 0.0)",
        tests=("tests/repvit_sam_jax/models/test_sam.py::test_padding_changes_nothing",),
    ),
    Mutant(
        name="later-blocks-share-image-tokens",
        file=_TRANSFORMER,
        old="layer.share(same if layer.first else None, image_pe)",
        new="layer.share(same, image_pe)",
        tests=("tests/repvit_sam_jax/models/test_decoder.py::test_equals_the_plain_order_stage_by_stage",),
    ),
    Mutant(
        name="bias-of-values-lost-when-tokens-are-first",
        file="repvit_sam_jax/ops/attention.py",
        old="split_heads(kernel, h)) + bias.reshape(h, 1, -1)",
        new="split_heads(kernel, h))",
        tests=(_PYTORCH,),
    ),
    Mutant(
        name="upscaling-layer-norm-epsilon",
        file=_DECODER,
        old="self.norm = LayerNorm(dim // 4, epsilon=1e-6, **common)",
        new="self.norm = LayerNorm(dim // 4, epsilon=1e-5, **common)",
        tests=("tests/convert/test_parity.py::test_tiny_is_within_tolerance",),
    ),
    Mutant(
        name="predicted-ious-of-other-masks",
        file=_DECODER,
        old=".astype(jnp.float32))[..., chosen]",
        new=".astype(jnp.float32))[..., : len(numbers)]",
        tests=(f"{_PYTORCH}[point-True]",),
    ),
    Mutant(
        name="hypernetworks-see-the-token-before",
        file=_DECODER,
        old="self.hypernetworks[str(i)](tokens[:, :, 1 + i])",
        new="self.hypernetworks[str(i)](tokens[:, :, i])",
        tests=(f"{_PYTORCH}[point-True]",),
    ),
    Mutant(
        name="upscaled-patches-transposed",
        file="repvit_sam_jax/ops/upscaling.py",
        old=".transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)",
        new=".transpose(0, 1, 8, 2, 5, 7, 3, 4, 6)",
        tests=(f"{_PYTORCH}[point-True]",),
    ),
    Mutant(
        name="packed-biases-interleaved",
        file="repvit_sam_jax/ops/upscaling.py",
        old="jnp.tile(norm.bias, 4)",
        new="jnp.repeat(norm.bias, 4)",
        tests=("tests/repvit_sam_jax/models/test_decoder.py::test_masks_with_pixels_among_the_channels[float32]",),
    ),
    Mutant(
        name="last-chunk-of-masks-forgotten",
        file="repvit_sam_jax/ops/chunks.py",
        old="(wanted.sum(1).max() + size - 1) // size",
        new="wanted.sum(1).max() // size",
        tests=("tests/repvit_sam_jax/models/test_decoder.py::test_masks_of_prompts_with_a_promising_one",),
    ),
    Mutant(
        name="identity-branch-not-fused",
        file="repvit_sam_jax/weights/reparam.py",
        old='np.asarray(node["conv1x1"]["kernel"], np.float64) + 1.0',
        new='np.asarray(node["conv1x1"]["kernel"], np.float64)',
        tests=("tests/repvit_sam_jax/weights/test_reparam.py::test_every_kind_of_block[plain]",),
    ),
    Mutant(
        name="folded-in-float32",
        file="repvit_sam_jax/weights/reparam.py",
        old="np.asarray(a, np.float64) for a in (bn",
        new="np.asarray(a, np.float32) for a in (bn",
        tests=("tests/repvit_sam_jax/weights/test_reparam.py::test_folding_in_float64_is_needed",),
    ),
)

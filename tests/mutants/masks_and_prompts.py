"""Mistakes around the models: photos, prompts, masks, files and the command."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_MASKS = "repvit_sam_jax/inference/masks.py"
_GENERATOR = "repvit_sam_jax/inference/mask_generator.py"
_TRANSFORMS = "repvit_sam_jax/transforms.py"
_RECORDS = "tests/repvit_sam_jax/inference/test_mask_generator.py::test_identical_logits_give_identical_records"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="colours-in-the-order-of-opencv",
        file=_TRANSFORMS,
        old="PIXEL_MEAN = (123.675, 116.28, 103.53)",
        new="PIXEL_MEAN = (103.53, 116.28, 123.675)",
        tests=("tests/repvit_sam_jax/test_transforms.py::test_preprocess_resizes_with_pillow_normalises_then_pads",),
    ),
    Mutant(
        name="padding-normalised-on-the-device",
        file=_TRANSFORMS,
        old="jnp.where(rows[:, :, None, None] & columns[:, None, :, None], normalized, 0.0)",
        new="normalized",
        tests=("tests/repvit_sam_jax/test_transforms.py::test_normalize_on_the_device_is_the_same",),
    ),
    Mutant(
        name="masks-resized-from-corners-of-pixels",
        file=_TRANSFORMS,
        old="np.float64(scale) * (np.arange(new_size) + 0.5) - 0.5",
        new="np.float64(scale) * np.arange(new_size)",
        tests=("tests/repvit_sam_jax/test_transforms.py::test_postprocess_is_two_bilinear_resizes",),
    ),
    Mutant(
        name="photo-not-turned-as-exif-says",
        file=_TRANSFORMS,
        old="image = ImageOps.exif_transpose(opened)",
        new="image = opened.copy()",
        tests=("tests/repvit_sam_jax/bad_input/test_images.py::test_exif_orientation",),
    ),
    Mutant(
        name="sixteen-bits-divided-by-256",
        file=_TRANSFORMS,
        old="np.asarray(image, np.uint16) / 257",
        new="np.asarray(image, np.uint16) / 256",
        tests=("tests/repvit_sam_jax/bad_input/test_images.py::test_sixteen_bit_grayscale_is_scaled",),
    ),
    Mutant(
        name="stability-without-its-offset",
        file=_MASKS,
        old="pixels > threshold + offset",
        new="pixels > threshold - offset",
        tests=("tests/repvit_sam_jax/inference/test_masks.py::test_upscaled_masks_equal_the_two_resizes",),
    ),
    Mutant(
        name="box-includes-the-pixel-after-the-last",
        file=_MASKS,
        old="int(y[1::2].max()) - 1]",
        new="int(y[1::2].max())]",
        tests=("tests/repvit_sam_jax/inference/test_masks.py::test_upscaled_masks_equal_the_two_resizes",),
    ),
    Mutant(
        name="runs-begin-inside",
        file="repvit_sam_jax/inference/rle.py",
        old="inside = np.arange(len(counts)) % 2 == 1",
        new="inside = np.arange(len(counts)) % 2 == 0",
        tests=("tests/repvit_sam_jax/inference/test_masks.py::test_runs_are_those_of_coco",),
    ),
    Mutant(
        name="duplicates-at-the-threshold-dropped",
        file=_MASKS,
        old="(iou.astype(np.float64) > iou_threshold)",
        new="(iou.astype(np.float64) >= iou_threshold)",
        tests=("tests/repvit_sam_jax/inference/test_masks.py::test_nms",),
    ),
    Mutant(
        name="ties-of-duplicates-reversed",
        file=_MASKS,
        old='order = np.argsort(-scores, kind="stable")',
        new='order = np.argsort(scores, kind="stable")[::-1]',
        tests=(
            "tests/repvit_sam_jax/inference/test_masks.py::test_nms",
            "tests/repvit_sam_jax/inference/test_masks.py::test_nms_equals_the_plain_loop",
        ),
    ),
    Mutant(
        name="edge-of-the-photo-is-one-of-the-crop",
        file=_MASKS,
        old="(at_crop & ~at_photo).any(-1)",
        new="at_crop.any(-1)",
        tests=("tests/repvit_sam_jax/inference/test_masks.py::test_boxes_near_the_edge_of_a_crop",),
    ),
    Mutant(
        name="holes-connected-by-sides-alone",
        file=_MASKS,
        old="ndimage.label(mask, structure=np.ones((3, 3)))",
        new="ndimage.label(mask)",
        tests=("tests/repvit_sam_jax/inference/test_masks.py::test_regions_are_connected_over_corners",),
    ),
    Mutant(
        name="masks-of-crops-not-moved",
        file=_GENERATOR,
        old="masks.runs_to_counts(x + offset[0], y + offset[1], crop.image_size)",
        new="masks.runs_to_counts(x, y, crop.image_size)",
        tests=(f"{_RECORDS}[crops]",),
    ),
    Mutant(
        name="predicted-iou-at-the-threshold-passes",
        file=_GENERATOR,
        old="np.nonzero(iou > self._least_iou)",
        new="np.nonzero(iou >= self._least_iou)",
        tests=(f"{_RECORDS}[defaults]",),
    ),
    Mutant(
        name="stability-at-the-threshold-fails",
        file=_GENERATOR,
        old="not stability_score >= self.stability_score_thresh",
        new="not stability_score > self.stability_score_thresh",
        tests=(f"{_RECORDS}[defaults]", _RECORDS),
    ),
    Mutant(
        name="bgr-not-reversed",
        file="repvit_sam_jax/inference/predictor.py",
        old='image if image_format == "RGB" else image[..., ::-1]',
        new="image",
        tests=("tests/repvit_sam_jax/inference/test_predictor.py::test_bgr_is_reversed",),
    ),
    Mutant(
        name="only-the-first-prompts-of-a-call",
        file="repvit_sam_jax/inference/predictor.py",
        old="prompts[start : start + DECODE_BATCH]",
        new="prompts[:DECODE_BATCH]",
        tests=("tests/repvit_sam_jax/inference/test_predictor.py::test_more_prompts_than_one_call_decodes",),
    ),
    Mutant(
        name="width-and-height-exchanged-in-a-check",
        file="repvit_sam_jax/inference/prompts.py",
        old="0 <= x <= width and 0 <= y <= height",
        new="0 <= x <= height and 0 <= y <= width",
        tests=("tests/repvit_sam_jax/bad_input/test_prompts.py",),
    ),
    Mutant(
        name="inverted-boxes-accepted",
        file="repvit_sam_jax/inference/prompts.py",
        old="if x2 < x1 or y2 < y1:",
        new="if x2 < x1 and y2 < y1:",
        tests=("tests/repvit_sam_jax/bad_input/test_prompts.py::test_bad_prompt",),
    ),
    Mutant(
        name="nan-in-mask-prompt-accepted",
        file="repvit_sam_jax/inference/prompts.py",
        old="if not np.isfinite(masks).all():",
        new="if np.isinf(masks).any():",
        tests=("tests/repvit_sam_jax/bad_input/test_prompts.py::test_bad_prompt",),
    ),
    Mutant(
        name="points-of-a-file-are-background",
        file="repvit_sam_jax/inference/photos.py",
        old="int(point[2]) if point[2:] else 1",
        new="int(point[2]) if point[2:] else 0",
        tests=(
            "tests/repvit_sam_jax/inference/test_photos.py::test_a_prompt_for_each_photo_gives_what_single_photos_give",
        ),
    ),
    Mutant(
        name="float16-not-widened",
        file="repvit_sam_jax/weights/checkpoint.py",
        old="if array.dtype in HALF}",
        new="if array.dtype == HALF[0]}",
        tests=("tests/repvit_sam_jax/weights/test_checkpoint.py::test_half_precision_is_widened_exactly",),
    ),
    Mutant(
        name="saved-in-place",
        file="repvit_sam_jax/weights/checkpoint.py",
        old="save_file(arrays, temporary, metadata.to_strings())",
        new="save_file(arrays, path, metadata.to_strings())",
        tests=("tests/convert/test_conversion.py::test_save_is_all_or_nothing",),
    ),
    Mutant(
        name="files-of-other-libraries-accepted",
        file="repvit_sam_jax/weights/checkpoint.py",
        old='if strings.get("format") != FORMAT:',
        new='if "format" not in strings:',
        tests=("tests/convert/bad_checkpoints/test_loading.py::test_load_of_a_foreign_file",),
    ),
    Mutant(
        name="missing-arrays-accepted",
        file="repvit_sam_jax/weights/checkpoint.py",
        old="for k in expected if k not in found]",
        new="for k in expected if k in ()]",
        tests=("tests/convert/bad_checkpoints/test_loading.py::test_load_lists_all_that_is_wrong",),
    ),
    Mutant(
        name="points-of-the-command-are-background",
        file="repvit_sam_jax/cli/segment.py",
        old="labels = [p[2] if len(p) == 3 else 1.0 for p in points]",
        new="labels = [p[2] if len(p) == 3 else 0.0 for p in points]",
        tests=(
            "tests/repvit_sam_jax/cli/test_cli.py::test_points_and_box_give_one_mask_and_json",
            "tests/repvit_sam_jax/inference/test_photos.py::test_one_prompt_for_all_photos",
        ),
    ),
    Mutant(
        name="exit-code-0-for-a-mistake",
        file="repvit_sam_jax/terminal.py",
        old="raise SystemExit(1) from error",
        new="raise SystemExit(0) from error",
        tests=("tests/repvit_sam_jax/bad_input/test_command.py::test_command_fails",),
    ),
    Mutant(
        name="exported-predictor-gives-the-first-masks",
        file="repvit_sam_jax/inference/onnx.py",
        old="slice(1, None) if multimask_output else slice(0, 1)",
        new="slice(0, 3) if multimask_output else slice(0, 1)",
        tests=("tests/convert/export/test_onnx.py::test_predictor_gives_what_jax_gives",),
    ),
)

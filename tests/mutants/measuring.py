"""Mistakes in the measures of the zero-shot evaluations."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_METRICS = "repvit_sam_jax/evals/metrics"
_GOLDEN = "tests/repvit_sam_jax/evals/test_golden_metrics.py"
_EDGES = "tests/repvit_sam_jax/evals/test_golden_edges.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="boxes-give-areas-of-results",
        file=f"{_METRICS}/instances.py",
        old='float(coco_masks.area(result["segmentation"]))}',
        new='result["bbox"][2] * result["bbox"][3] if "bbox" in result else 0.0}',
        tests=(f"{_GOLDEN}::test_average_precision",),
    ),
    Mutant(
        name="results-numbered-from-zero",
        file=f"{_METRICS}/instances.py",
        old="enumerate(results, 1)",
        new="enumerate(results, 0)",
        tests=(f"{_GOLDEN}::test_an_object_is_found_once",),
    ),
    Mutant(
        name="overlap-of-tracks-leaves-out-lonely-masks",
        file=f"{_METRICS}/tracks.py",
        old="        masks = [mask for mask in pair if mask]\n",
        new="        masks = list(pair) if all(pair) else []\n",
        tests=(f"{_GOLDEN}::test_average_recall_of_tracks",),
    ),
    Mutant(
        name="size-of-a-track-counts-empty-frames",
        file=f"{_METRICS}/tracks.py",
        old="for mask in masks if mask) if area]",
        new="for mask in masks if mask)] + [0.0] * (len(masks) - sum(map(bool, masks)))",
        tests=(f"{_GOLDEN}::test_average_recall_of_tracks",),
    ),
    Mutant(
        name="first-frame-of-a-video-counts",
        file=f"{_METRICS}/video.py",
        old="zip(prediction[1:-1], truth[1:-1], strict=True)",
        new="zip(prediction[:-2], truth[:-2], strict=True)",
        tests=(f"{_GOLDEN}::test_measures_of_davis",),
    ),
    Mutant(
        name="boundary-at-the-frame's-edge",
        file=f"{_METRICS}/video.py",
        old='np.pad(mask, ((0, 1), (0, 1)), mode="edge")',
        new="np.pad(mask, ((0, 1), (0, 1)))",
        tests=(f"{_GOLDEN}::test_empty_masks_of_video",),
    ),
    Mutant(
        name="truth-of-saliency-at-half-of-255",
        file=f"{_METRICS}/saliency.py",
        old="return gray / (gray.max() + _EPSILON) > 0.5",
        new="return gray > 200",
        tests=(f"{_GOLDEN}::test_nearest_masks",),
    ),
    Mutant(
        name="last-of-equal-masks",
        file=f"{_METRICS}/saliency.py",
        old="if f1 > best.f1:",
        new="if f1 >= best.f1:",
        tests=(f"{_GOLDEN}::test_nearest_masks",),
    ),
    Mutant(
        name="map-over-the-number-of-masks",
        file=f"{_METRICS}/anomaly.py",
        old="np.zeros(size), np.ones(size)",
        new="np.zeros(size), np.full(size, 1e-9)",
        tests=(f"{_GOLDEN}::test_scores_maps_and_the_best_f1",),
    ),
    Mutant(
        name="best-f1-inside-ties",
        file=f"{_METRICS}/anomaly.py",
        old="last = np.append(ordered[1:] != ordered[:-1], True)",
        new="last = np.ones(len(ordered), bool)",
        tests=(f"{_GOLDEN}::test_best_f1_of_ties", f"{_GOLDEN}::test_best_f1_is_that_of_the_slow_sweep"),
    ),
    Mutant(
        name="edges-strictly-over-the-threshold",
        file=f"{_METRICS}/edges.py",
        old="chosen = edges >= threshold",
        new="chosen = edges > threshold",
        tests=(f"{_EDGES}::test_counts",),
    ),
    Mutant(
        name="matches-without-distances",
        file=f"{_METRICS}/edges.py",
        old='np.rint(100 * near["v"][pairs])',
        new="np.zeros(len(pairs))",
        tests=(f"{_EDGES}::test_nearer_pixels_match", f"{_EDGES}::test_counts"),
    ),
    Mutant(
        name="ods-without-interpolation",
        file=f"{_METRICS}/edges.py",
        old="_STEPS = np.linspace(0, 1, 100)",
        new="_STEPS = np.linspace(1, 1, 1)",
        tests=(f"{_EDGES}::test_best_f1_is_between_thresholds",),
    ),
    Mutant(
        name="ois-at-the-most-precise-threshold",
        file=f"{_METRICS}/edges.py",
        old="int(np.argmax(_f1(counts.recall, counts.precision)))",
        new="int(np.argmax(counts.precision))",
        tests=(f"{_EDGES}::test_summaries_of_the_official_counts",),
    ),
    Mutant(
        name="edges-do-not-fade-at-the-border",
        file=f"{_METRICS}/edge_nms.py",
        old="nearest / BORDER, 1)",
        new="nearest / 1, 1)",
        tests=(f"{_EDGES}::test_suppression",),
    ),
    Mutant(
        name="orientation-along-the-edge",
        file=f"{_METRICS}/edge_nms.py",
        old="np.sign(-dxy)",
        new="np.sign(dxy)",
        tests=(f"{_EDGES}::test_suppression",),
    ),
)

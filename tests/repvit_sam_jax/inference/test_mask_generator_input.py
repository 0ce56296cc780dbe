"""Settings and images that SamAutomaticMaskGenerator refuses, and what it says."""

import numpy as np
import pytest

from repvit_sam_jax import SamAutomaticMaskGenerator

GRIDS = [np.full((2, 2), 0.5)] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_mode": "png"}, "output_mode must be one of binary_mask, uncompressed_rle, coco_rle, got 'png'"),
        ({"points_per_side": None}, "either points_per_side or point_grids.*got neither"),
        ({"point_grids": GRIDS}, "either points_per_side or point_grids.*got both"),
        ({"points_per_side": 0}, "points_per_side=0 leaves no points in layer 0"),
        ({"points_per_side": -3}, "points_per_side must be at least 0, got -3"),
        ({"points_per_batch": 2.5}, "points_per_batch must be an integer, got 2.5"),
        ({"points_per_side": 4.5}, "points_per_side must be an integer, got 4.5"),
        ({"points_per_batch": float("inf")}, "points_per_batch must be an integer, got inf"),
        ({"min_mask_region_area": float("inf")}, "min_mask_region_area must be finite, got inf"),
        ({"box_nms_thresh": float("nan")}, "box_nms_thresh must be at least 0, got nan"),
        ({"crop_nms_thresh": -1}, "crop_nms_thresh must be at least 0, got -1"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh must be at least -inf, got nan"),
        ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "no points in layer 2"),
        ({"points_per_side": None, "point_grids": []}, "point_grids has 0 grids; crop_n_layers=0 needs 1"),
        ({"points_per_side": None, "point_grids": GRIDS, "crop_n_layers": 3}, "has 3 grids; crop_n_layers=3 needs 4"),
        ({"points_per_side": None, "point_grids": [np.zeros((0, 2))]}, r"point_grids\[0\] must have shape \[N, 2\]"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, r"point_grids\[0\] must lie in \[0, 1\]"),
        ({"points_per_side": None, "point_grids": [[[0.5, np.nan]]]}, r"point_grids\[0\] must lie in \[0, 1\]"),
        ({"points_per_batch": 0}, "points_per_batch must be at least 1, got 0"),
        ({"points_per_side": (8, 4, 2)}, r"points_per_side must be a number, or \(along the width, .*\(8, 4, 2\)"),
        ({"points_per_side": (8, 0)}, r"points_per_side=\(8, 0\) leaves no points in layer 0"),
        ({"points_per_side": "32"}, "points_per_side must be a number, got '32'"),
        ({"points_per_batch": None}, "points_per_batch must be a number, got None"),
        ({"stability_score_thresh": [0.9]}, r"stability_score_thresh must be a number, got \[0.9\]"),
        ({"pred_iou_thresh": 0.9j}, "pred_iou_thresh must be a number, got 0.9j"),
        ({"box_nms_thresh": True}, "box_nms_thresh must be a number, got True"),
        ({"crop_n_layers": -1}, "crop_n_layers must be at least 0, got -1"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio must be at least 0 and below 1, got 1.0"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor must be at least 1"),
        ({"stability_score_offset": -1}, "stability_score_offset must be at least 0"),
        ({"min_mask_region_area": float("nan")}, "min_mask_region_area must be at least 0, got nan"),
    ],
)
def test_settings_that_cannot_be_meant(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        SamAutomaticMaskGenerator(*tiny, **settings)


def test_images_that_cannot_be_meant(tiny):
    generator = SamAutomaticMaskGenerator(*tiny)
    for image, message in (
        (np.zeros((0, 5, 3), np.uint8), "the image is empty"),
        (np.zeros((5, 5), np.uint8), "grayscale"),
        (np.zeros((5, 5, 3), np.float32), "uint8"),
        (np.zeros((1, 1000, 3), np.uint8), "too narrow"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.generate(image)
        with pytest.raises(ValueError, match=message):
            generator.count_points(image)
        with pytest.raises(ValueError, match=f"image 1: .*{message}"):
            generator.generate_batch([np.zeros((5, 5, 3), np.uint8), image])
    with pytest.raises(ValueError, match=r"image 1: .* is too small for 4 x 4 crops; set crop_n_layers to less than 2"):
        SamAutomaticMaskGenerator(*tiny, crop_n_layers=2).generate_batch(
            [np.zeros((75, 110, 3), np.uint8), np.zeros((3, 90, 3), np.uint8)]
        )


def test_one_image_in_place_of_several(tiny):
    with pytest.raises(ValueError, match=r"list of images, got an array \(20, 30, 3\); generate takes one image"):
        SamAutomaticMaskGenerator(*tiny).generate_batch(np.zeros((20, 30, 3), np.uint8))

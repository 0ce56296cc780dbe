"""Our second stage: `edgesam_stage2` and more."""

from ..recipe import Losses, Optimizer, Prompting, Recipe

beyond = Recipe(
    name="beyond",
    student="repvit_sam",
    batch_size=16,
    epochs=5,
    trained=("image_encoder", "mask_decoder"),
    optimizer=Optimizer(1e-4, 1e-5, weight_decay=0.05, clip_norm=1.0, ema_decay=0.99),
    losses=Losses(mse=1.0, bce=5.0, dice=5.0, iou=1.0),
    prompting=Prompting(targets="ground_truth"),
)

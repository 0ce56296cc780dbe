"""Our second stage: prompts in the loop as in `edgesam_stage2`, and what that lacks.

The masks of the data are the targets in place of the teacher's, so that the student can become better than the teacher,
and of the several masks for a single point the best one learns; the embeddings go on being distilled; predicted IoUs
learn, which choose the mask for a point; gradients are clipped at 1, and a moving average is the result.

What it is worth is in docs/distillation.md: less than half a point of mIoU over `edgesam_stage2`, on tiny models alone.
"""

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

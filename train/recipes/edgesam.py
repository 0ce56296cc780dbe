"""EdgeSAM's two stages (arXiv 2312.06660) for the RepViT-SAM encoder.

Stage 1 is on embeddings without the padding. Stage 2 starts from its export (`init`) and has prompts in the loop: at
most 16 a photo, boxes and points in equal parts, two decodings, the teacher's thresholded masks as targets.

Deliberate differences: once a prompt is a box or has more than one point, the decoder's single mask is compared
alone; a point is drawn wherever the masks of student and teacher differ, if by a single pixel.

Batches are the paper's; on sixteen chips of a v5e they are four photos a chip, and one. Blocks keep the results of
their products alone (`remat`): four photos beside ViT-H then fit a chip of 16 GiB, which they do not otherwise
(docs/distillation.md).
"""

from ..recipe import Losses, Optimizer, Prompting, Recipe

edgesam_stage1 = Recipe(
    name="edgesam_stage1",
    student="repvit_sam",
    batch_size=64,
    epochs=10,
    remat="dots",
    optimizer=Optimizer(0.1 * 64 / 512, 6.25e-7, warmup=0.5, weight_decay=0.01, clip_norm=5.0),
)

edgesam_stage2 = Recipe(
    name="edgesam_stage2",
    student="repvit_sam",
    batch_size=16,
    epochs=5,
    remat="dots",
    trained=("image_encoder", "mask_decoder"),
    optimizer=Optimizer(1e-4, 1e-5, weight_decay=0.05, clip_norm=0.01),
    losses=Losses(mse=0.0, bce=5.0, dice=5.0),
    prompting=Prompting(),
)

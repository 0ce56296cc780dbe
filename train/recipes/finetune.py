"""Fine-tuning on one's own masks (`repvit-sam train finetune`), from a trained segmenter and without a teacher.

Ours. The mask decoder learns and the image encoder stays, as in the cheapest setting of MedSAM (arXiv 2304.12306) and
SAM-HQ (2306.01567): a few photos would not teach an encoder more than it forgets. Losses and prompts in the loop are
those that SAM was trained with (2304.02643, appendix A), with cross-entropy in place of the focal loss.
"""

from ..recipe import Losses, Optimizer, Prompting, Recipe

finetune = Recipe(
    name="finetune",
    student="repvit_sam",
    init="repvit_sam",
    batch_size=4,
    steps=1000,
    decoder="init",
    trained=("mask_decoder",),
    optimizer=Optimizer(1e-4, 1e-6, warmup=0.05, weight_decay=0.01, clip_norm=1.0, ema_decay=0.99),
    losses=Losses(mse=0.0, bce=5.0, dice=2.0, iou=1.0),
    prompting=Prompting(num_prompts=8, targets="ground_truth", logits=True),
    flip_probability=0.5,
    log_every=20,
    checkpoint_every=100,
    evaluate_every=100,
    patience=3,
)

"""RepViT-SAM's own recipe (arXiv 2312.05760), as far as it is known.

Known: 1% of SA-1B, eight epochs, the mean squared error of the image embeddings against SAM ViT-H, and MobileSAM's
settings otherwise (2306.14289: batches of eight images); the mask decoder is SAM's and is not trained.

Unknown, and chosen here: the optimizer and its learning rate, which are EdgeSAM's first stage (2312.06660) scaled to
the batch by its own rule, 0.1 / 512 an image; and whether the encoder started from an ImageNet classifier, which is
recommended (`init`).
"""

from ..recipe import Losses, Optimizer, Recipe

repvit_sam_paper = Recipe(
    name="repvit_sam_paper",
    student="repvit_sam",
    batch_size=8,
    epochs=8,
    remat="dots",
    optimizer=Optimizer(0.1 * 8 / 512, 6.25e-7, warmup=0.5, weight_decay=0.01, clip_norm=5.0),
    losses=Losses(padding=True),
)

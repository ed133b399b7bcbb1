"""A detector that forms scores at mask resolution against the exact one: images and their scores.

Both run the same EoMT with random weights over the windows of one image; what differs is where the
masks meet the classes. The share of pixels whose rank the faster way changes is not a matter of
random weights: README says what it does to AP of a trained model.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import timing
from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.engine.detector import Detector, Resolution
from eomt_exp.models.eomt import EoMT
from eomt_exp.scorers.max_logit import MaxLogit
from eomt_exp.scorers.msp import MSP
from eomt_exp.scorers.rba import RbA

SIZE = (512, 512)
IMAGE = (512, 1024)
QUERIES, CLASSES = 100, 19


def detectors(
    embed_dim: int = 384, depth: int = 12, size: tuple[int, int] = SIZE
) -> dict[Resolution, Detector]:
    """The same ViT-S (by default) behind both."""
    torch.manual_seed(0)
    encoder = TimmViT(
        name="vit_small_patch16_224",
        image_size=size,
        embed_dim=embed_dim,
        overrides={"embed_dim": embed_dim, "depth": depth, "num_heads": embed_dim // 64},
    )
    model = EoMT(
        encoder=encoder, num_classes=CLASSES, num_queries=QUERIES, masked_attention=False
    ).eval()
    scorers = {"msp": MSP(), "max_logit": MaxLogit(), "rba": RbA()}
    return {
        resolution: Detector(
            model=model, scorers=scorers, score="rba", image_size=size, resolution=resolution
        )
        for resolution in ("mask", "input")
    }


def main() -> None:
    """Print the table."""
    options = timing.parser(__doc__, repeats=6).parse_args()
    torch.set_num_threads(options.threads)
    both = detectors()
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE, 3), dtype=np.uint8)
    rows = []
    for what, known in (("scores", False), ("scores and known classes", True)):

        def work(resolution: Resolution, known: bool = known) -> None:
            list(both[resolution].stream([image], known=known))

        rows.append(
            timing.compare(
                what, lambda: work("mask"), lambda: work("input"), repeats=options.repeats
            )
        )
    title = f"ViT-S/16, {QUERIES} queries, image {IMAGE[0]}x{IMAGE[1]}: {timing.machine('cpu')}"
    timing.console().print(timing.table(title, rows, theirs="exact"))


if __name__ == "__main__":
    main()

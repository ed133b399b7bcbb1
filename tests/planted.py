"""Tiny outputs and targets with something planted in them that a test can ask for, and a tiny ViT.

B = 2 images of 32 x 32 pixels, Q = 6 queries with masks of 8 x 8, K = 4 known classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.build import build
from eomt_exp.contracts import ANOMALY, NO_OBJECT, NORMAL, MaskOutput, PixelOutput, Target
from eomt_exp.losses.matching import Matcher
from eomt_exp.losses.point_sampling import Candidates, PointSampler

B, Q, K, D = 2, 6, 4, 16
GRID, SIZE = 8, 32
SURE = 12.0  # a logit that leaves no doubt
POINTS = 256  # of the losses that compare masks at points
ORDER = [[4, 0, 2], [5, 1]]  # the query that predicts each known mask of two_targets()
ORDER_WITH_OUTLIER = [[4, 0, 2, 3], [5, 1]]


def tiny_vit(
    size: tuple[int, int], *, name: str = "vit_small_patch14_reg4_dinov2", patch_size: int = 16,
    dim: int = 48, depth: int = 4, heads: int = 3, **overrides: Any,
) -> TimmViT:  # fmt: skip
    """A backbone of timm in a size for tests, with random weights."""
    overrides |= {"embed_dim": dim, "depth": depth, "num_heads": heads}
    return TimmViT(
        name=name, image_size=size, embed_dim=dim, patch_size=patch_size, overrides=overrides
    )


def random_output(
    seed: int = 0, *, outlier_class: bool = False, num_aux: int = 0, scale: float = 1.0
) -> MaskOutput:
    """Noise of the right shapes, every tensor a leaf that asks for its gradient."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

    def one() -> MaskOutput:
        masks, classes = noise(B, Q, GRID, GRID), noise(B, Q, K + 1 + outlier_class)
        return MaskOutput(
            mask_logits=masks,
            class_logits=classes,
            queries=noise(B, Q, D),
            anomaly_logits=noise(B, Q, 3),
            num_classes=K,
            distances=classes.abs(),
        )

    aux = tuple(one() for _ in range(num_aux))
    return one()._replace(aux=aux)


def boxes(*corners: tuple[int, int, int, int]) -> Tensor:
    """(top, left, bottom, right) of each box in grid cells -> (M, SIZE, SIZE) bool masks."""
    step = SIZE // GRID
    masks = torch.zeros(len(corners), SIZE, SIZE, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top * step : bottom * step, left * step : right * step] = True
    return masks


def target_of(masks: Tensor, labels: list[int], outlier: Tensor | None = None) -> Target:
    """One image's truth; the outlier (SIZE, SIZE) bool is what was pasted."""
    anomaly = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    if outlier is not None:
        anomaly[outlier] = ANOMALY
    ignore = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    return Target(masks, torch.tensor(labels, dtype=torch.int64), anomaly, ignore)


def two_targets(*, label_outlier: bool = False) -> list[Target]:
    """Image 0: three known masks and a pasted object; image 1: two known masks."""
    masks = boxes((0, 0, 4, 4), (0, 4, 8, 8), (4, 0, 8, 2), (5, 2, 8, 4))
    count = 3 + label_outlier
    first = target_of(masks[:count], [2, 0, 3, K][:count], masks[3])
    return [first, target_of(boxes((0, 0, 3, 8), (3, 0, 8, 8)), [1, 3])]


def empty_target() -> Target:
    """An image in which nothing is known and nothing was pasted."""
    return target_of(torch.zeros(0, SIZE, SIZE, dtype=torch.bool), [])


def saying(targets: list[Target], order: list[list[int]], *, num_outputs: int) -> MaskOutput:
    """An output that predicts the truth: mask m of image b comes from query order[b][m]."""
    mask_logits = torch.full((B, Q, SIZE, SIZE), -SURE)
    class_logits = torch.zeros(B, Q, num_outputs)
    class_logits[..., -1] = SURE
    for image, target in enumerate(targets):
        for query, mask, label in zip(order[image], target.masks, target.labels, strict=True):
            mask_logits[image, query][mask] = SURE
            class_logits[image, query] = 0.0
            class_logits[image, query, label] = SURE
    return MaskOutput(mask_logits, class_logits, torch.zeros(B, Q, D), None, K)


def total(loss: Any, output: MaskOutput, targets: list[Target], seed: int = 7) -> Tensor:
    """The sum of a loss's terms, its random points drawn from this seed."""
    torch.manual_seed(seed)
    return torch.stack(list(loss(output, targets).values())).sum()


def planted_output(*, outlier_class: bool, with_head: bool) -> MaskOutput:
    """Left half: one sure known query. Right half: a query of no known class.

    It says the outlier class where there is one, else no-object; the head calls it an anomaly, and
    it is at a right angle to the prototypes.
    """
    mask_logits = torch.full((B, Q, GRID, GRID), -SURE)
    mask_logits[:, 0, :, : GRID // 2] = SURE
    mask_logits[:, 1, :, GRID // 2 :] = SURE
    class_logits = torch.zeros(B, Q, K + 1 + outlier_class)
    class_logits[:, 0, 1] = SURE
    class_logits[:, 1, K] = SURE  # the outlier class, or no-object
    class_logits[:, 2:, -1] = SURE
    states = torch.tensor([NORMAL, ANOMALY] + [NO_OBJECT] * (Q - 2))
    heads = SURE * torch.nn.functional.one_hot(states, 3).float().expand(B, Q, 3)
    distances = torch.full_like(class_logits, 2**0.5)
    distances[:, 0, 1] = 0.1
    bare = MaskOutput(mask_logits, class_logits, torch.zeros(B, Q, D), None, K)
    return bare._replace(anomaly_logits=heads, distances=distances) if with_head else bare


def planted_pixels() -> PixelOutput:
    """Left half: one sure class. Right half: no class stands out."""
    logits = torch.zeros(B, K, GRID, GRID)
    logits[:, 1, :, : GRID // 2] = SURE
    return PixelOutput(logits)


def halves(score: Tensor) -> tuple[Tensor, Tensor]:
    """(B, h, w) -> the scores of the left and of the right half."""
    middle = score.shape[-1] // 2
    return score[..., :middle], score[..., middle:]


def part_of(node: dict[str, Any]) -> Any:
    """The part a YAML node describes; interpolated keys keep the constructor's default."""
    return build({key: value for key, value in node.items() if not str(value).startswith("${")})


def mined_folder(folder: Path, *, outliers: Sequence[int] = (), ground: Sequence[int] = (),
                 num_queries: int = Q) -> str:  # fmt: skip
    """A folder as task=analyse_queries leaves it for scorer=maskomaly."""
    mined = {"weights": "planted", "weights_sha256": "0", "num_queries": num_queries}
    mined |= {"outlier_queries": [*outliers], "ground_queries": [*ground]}
    (folder / "mined_queries.json").write_text(json.dumps(mined))
    return str(folder)


def fix_points(patch: pytest.MonkeyPatch) -> None:
    """Let losses read every mask at one grid of points, so that no draw tells two batches apart."""
    side = torch.linspace(0.02, 0.98, 16)
    points = torch.cartesian_prod(side, side)[None]  # (1, P, 2)

    def candidates(sampler: PointSampler, num_masks: int, like: Tensor) -> Candidates:
        all_points = points.expand(num_masks, -1, -1).to(like).contiguous()
        return Candidates(all_points, all_points[:, : sampler.num_points - sampler.num_kept])

    patch.setattr(Matcher, "draw", lambda self, truth: points.expand(len(truth.counts), -1, -1))
    patch.setattr(PointSampler, "draw", candidates)

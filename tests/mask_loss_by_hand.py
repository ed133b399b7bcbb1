"""EoMT's loss written out slowly and literally, as the oracle for the fast one.

Every step is the published one, in its own order: mask pairs one by one, two cross-entropies for
the pairwise cost, zero-padded stacks of targets, one matching per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from eomt_exp.contracts import MaskOutput, Target


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """(N, 1, H, W), (N, P, 2) -> (N, P)."""
    read = F.grid_sample(maps, 2.0 * points.unsqueeze(2) - 1.0, align_corners=False)
    return read.squeeze(3).squeeze(1)


def match_one(logits: Tensor, classes: Tensor, target: Target, num_points: int) -> tuple:
    """The matched queries and masks of one image."""
    masks = target.masks.to(logits)[:, None]
    points = torch.rand(1, num_points, 2)
    labels = at_points(masks, points.repeat(len(masks), 1, 1))
    preds = at_points(logits[:, None], points.repeat(len(logits), 1, 1))
    pos = F.binary_cross_entropy_with_logits(preds, torch.ones_like(preds), reduction="none")
    neg = F.binary_cross_entropy_with_logits(preds, torch.zeros_like(preds), reduction="none")
    bce = pos / num_points @ labels.T + neg / num_points @ (1 - labels).T
    probs = preds.sigmoid()
    dice = 1 - (2 * probs @ labels.T + 1) / (probs.sum(-1)[:, None] + labels.sum(-1)[None] + 1)
    cost = 5.0 * bce + 5.0 * dice - 2.0 * classes.softmax(-1)[:, target.labels]
    cost = torch.maximum(torch.minimum(cost, torch.tensor(1e10)), torch.tensor(-1e10))
    rows, columns = linear_sum_assignment(torch.nan_to_num(cost, 0).detach().numpy())
    return torch.as_tensor(rows), torch.as_tensor(columns)


def uncertain_points(logits: Tensor, num_points: int) -> Tensor:
    """(N, 1, h, w) -> (N, P, 2)."""
    drawn = torch.rand(len(logits), 3 * num_points, 2)
    uncertainty = -at_points(logits, drawn).abs()
    num_kept = int(0.75 * num_points)
    kept = uncertainty.topk(num_kept, dim=1).indices
    chosen = drawn[torch.arange(len(drawn))[:, None], kept]
    return torch.cat([chosen, torch.rand(len(logits), num_points - num_kept, 2)], dim=1)


def loss_of_one(output: MaskOutput, targets: Sequence[Target], num_points: int) -> dict:
    """The three unweighted terms of one output."""
    with torch.no_grad():
        pairs = [
            match_one(output.mask_logits[i], output.class_logits[i], target, num_points)
            for i, target in enumerate(targets)
        ]
    image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(pairs)])
    query = torch.cat([rows for rows, _ in pairs])
    logits = output.mask_logits[image, query][:, None]
    padded = pad_sequence([target.masks.float() for target in targets], batch_first=True)
    masks = padded[image, torch.cat([columns for _, columns in pairs])][:, None]
    with torch.no_grad():
        points = uncertain_points(logits, num_points)
        labels = at_points(masks, points)
    preds = at_points(logits, points)
    bce = F.binary_cross_entropy_with_logits(preds, labels, reduction="none").mean(1).sum()
    probs = preds.sigmoid()
    dice = 1 - (2 * (probs * labels).sum(-1) + 1) / (probs.sum(-1) + labels.sum(-1) + 1)
    num_masks = max(len(query), 1)
    num_classes = output.class_logits.shape[-1] - 1
    states = torch.full(output.class_logits.shape[:2], num_classes)
    for i, (rows, columns) in enumerate(pairs):
        states[i, rows] = targets[i].labels[columns]
    weight = torch.ones(num_classes + 1)
    weight[-1] = 0.1
    classes = F.cross_entropy(output.class_logits.transpose(1, 2), states, weight)
    return {"mask": bce / num_masks, "dice": dice.sum() / num_masks, "class": classes}


def mask_loss_by_hand(
    output: MaskOutput, targets: Sequence[Target], num_points: int
) -> dict[str, Tensor]:
    """The weighted terms, summed over the blocks' outputs and the final one."""
    weights = {"mask": 5.0, "dice": 5.0, "class": 2.0}
    terms = [loss_of_one(one, targets, num_points) for one in (*output.aux, output)]
    return {name: sum(weight * term[name] for term in terms) for name, weight in weights.items()}

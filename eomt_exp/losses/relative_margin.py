"""Rank every anomalous pixel over every normal one: CG-Aug (Gao et al., NeurIPS 2024).

Hinges on differences of scores need no margins that fit the range of the score. The released code
draws random pairs; sorted once, all pairs of a batch cost no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import ANOMALY, NORMAL, Loss, MaskOutput, Scorer, Target
from eomt_exp.losses.cell_shares import mean_over_pixels, share_of_cells
from eomt_exp.losses.matching import loss_dtype
from eomt_exp.ranges import NotNegative


class RelativeMargin(Loss):
    """Averages hinges on the score s of pixels, on the final output's grid as OutlierMargin does.

    With o an anomalous pixel, i a normal one, and c one of a domain-shifted copy (Target.copy_of):
      relative_margin          [margin - (s_o - s_i)]_+, over all pairs of the batch.
      relative_margin_copy     [copy_margin - (s_o - s_c)]_+, over all pairs of the batch.
      relative_margin_shift    [s_c - s_i - tolerance]_+, over pixels c and i of the same place; the
                               paper's lambda_3 is -tolerance.
    """

    needs_anomalies = True

    def __init__(
        self,
        *,
        scorer: Scorer,
        margin: float,
        copy_margin: float,
        tolerance: float,
        weight: NotNegative = 1.0,
    ) -> None:
        self.scorer = scorer
        self.margin = margin
        self.copy_margin = copy_margin
        self.tolerance = tolerance
        self.weight = weight

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the three terms; those with copies are 0 in a batch that has none."""
        score = self.scorer(output)  # (B, h, w)
        score = score.to(loss_dtype(score))
        outlier = torch.stack([one.anomaly == ANOMALY for one in targets])  # (B, H, W)
        normal = torch.stack([(one.anomaly == NORMAL) & (one.copy_of < 0) for one in targets])
        copied = torch.stack([(one.anomaly == NORMAL) & (one.copy_of >= 0) for one in targets])
        # Plain numbers index here: a tensor of them would wait for the device.
        shown = [i if one.copy_of < 0 else one.copy_of for i, one in enumerate(targets)]
        shift = score - torch.stack([score[i] for i in shown])  # 0 where there is no copy
        paired = copied & torch.stack([targets[i].anomaly == NORMAL for i in shown])
        values, order = score.flatten().sort()
        above, below, below_copies = (
            share_of_cells(pixels, score).flatten()[order] for pixels in (outlier, normal, copied)
        )
        terms = {
            "relative_margin": mean_over_pairs(values, above, below, self.margin),
            "relative_margin_copy": mean_over_pairs(values, above, below_copies, self.copy_margin),
            "relative_margin_shift": mean_over_pixels(F.relu(shift - self.tolerance), paired),
        }
        return {name: self.weight * term for name, term in terms.items()}


def mean_over_pairs(values: Tensor, above: Tensor, below: Tensor, margin: float) -> Tensor:
    """(N,) rising scores, two (N,) weights -> scalar: the mean of [margin - (s_a - s_b)]_+.

    A pair counts by the product of its weights, `above` of a and `below` of b. The sum over pairs
    that cost something is linear in each score, with the weight of its partners as the factor, and
    sorted scores tell that weight: N log N operations, no N^2 pairs.
    """
    least = torch.finfo(values.dtype).tiny  # a side without a pixel gives 0, not NaN
    above = above / above.sum().clamp(min=least)
    below = below / below.sum().clamp(min=least)
    bars = values + margin  # a pair costs something where s_a lies under the bar of s_b
    with torch.no_grad():
        above_up_to, below_up_to = (F.pad(one.cumsum(dim=0), (1, 0)) for one in (above, below))
        # Both sides compare the same numbers: a tie seen by one alone would leave a whole score.
        above_under_bar = above_up_to[torch.searchsorted(values, bars)]
        below_over = below_up_to[-1] - below_up_to[torch.searchsorted(bars, values, right=True)]
    return (below * above_under_bar * bars).sum() - (above * below_over * values).sum()

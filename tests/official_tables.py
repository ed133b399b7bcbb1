"""Numbers of EoMT's published recipe, written out: rates, warm-up and annealing.

None of them was computed with the code they judge. The formulas of the published implementation
(its two-stage schedule and layer-wise decay, the annealing steps spelled out in its configurations)
were evaluated with fifty decimal digits and copied here.
"""

from __future__ import annotations

from typing import NamedTuple


class Schedule(NamedTuple):
    """Shares of the peak rate at some steps of a run."""

    total: int
    head_warmup: int
    backbone_warmup: int
    shares: tuple[tuple[int, float, float], ...]  # step, heads, backbone


# Base rate 1e-4, decay 0.8, 12 blocks (ViT-S and ViT-B); three of them see the queries.
DINOV2_BLOCK_RATES = (
    8.589934592e-06, 1.073741824e-05, 1.34217728e-05, 1.6777216e-05, 2.097152e-05, 2.62144e-05,
    3.2768e-05, 4.096e-05, 5.12e-05, 6.4e-05, 8e-05, 1e-04,
)  # fmt: skip

# Base rate 2e-4, the joint blocks undecayed: DINOv3 on COCO.
DINOV3_BLOCK_RATES = (
    1.7179869184e-05, 2.147483648e-05, 2.68435456e-05, 3.3554432e-05, 4.194304e-05, 5.24288e-05,
    6.5536e-05, 8.192e-05, 1.024e-04, 2e-04, 2e-04, 2e-04,
)  # fmt: skip

DINOV2_ADE = Schedule(
    39120, 500, 1000,
    (
        (0, 0.0, 0.0),
        (1, 0.002, 0.0),
        (499, 0.998, 0.0),
        (500, 1.0, 0.0),
        (501, 0.9999766959822576, 0.001),
        (1499, 0.9766889163159848, 0.999),
        (1500, 0.9766655511424659, 1.0),
        (1501, 0.9766421859068386, 0.9999760765232274),
        (19560, 0.5421268571457655, 0.5550793273210121),
        (39119, 7.445072949817655e-05, 7.622950293586885e-05),
        (39120, 0.0, 0.0),
    ),
)  # fmt: skip
DINOV3_COCO = Schedule(
    88692, 2000, 3000,
    (
        (0, 0.0, 0.0),
        (1, 0.0005, 0.0),
        (1999, 0.9995, 0.0),
        (2000, 1.0, 0.0),
        (2001, 0.9999896184132436, 0.0003333333333333333),
        (4999, 0.9688110908188228, 0.9996666666666667),
        (5000, 0.9688006726177468, 1.0),
        (5001, 0.9687902544042226, 0.9999892462775691),
        (44346, 0.5470007065572603, 0.5646163571286936),
        (88691, 3.595993349863623e-05, 3.711798981463414e-05),
        (88692, 0.0, 0.0),
    ),
)  # fmt: skip

# Run length and joint blocks -> the probability of masking in each block at some steps. K = 4 are
# the published configurations of ViT-L on COCO (12 epochs) and Cityscapes (107); the others are
# their formula for small, base (3 blocks) and giant (5).
MASK_PROBS: dict[tuple[int, int], tuple[tuple[int, tuple[float, ...]], ...]] = {
    (88692, 4): (
        (0, (1, 1, 1, 1)), (14781, (1, 1, 1, 1)), (14782, (1, 1, 1, 1)),
        (14783, (0.9999391149340875, 1, 1, 1)), (22173, (0.5358867312681466, 1, 1, 1)),
        (29563, (0.000176701453474494, 1, 1, 1)), (29564, (0, 1, 1, 1)),
        (36955, (0, 0.5358867312681466, 1, 1)), (44346, (0, 0, 1, 1)),
        (59128, (0, 0, 0, 1)), (73909, (0, 0, 0, 0.000176701453474494)),
        (73910, (0, 0, 0, 0)), (88692, (0, 0, 0, 0)),
    ),
    (19902, 4): (
        (3317, (1, 1, 1, 1)), (5000, (0.5287567476582912, 1, 1, 1)), (6634, (0, 1, 1, 1)),
        (9951, (0, 0, 1, 1)), (13268, (0, 0, 0, 1)),
        (16584, (0, 0, 0, 0.000678155167863938)), (16585, (0, 0, 0, 0)),
    ),
    (88692, 3): (
        (14782, (1, 1, 1)), (22173, (0.5358867312681466, 1, 1)), (36955, (0, 1, 1)),
        (40000, (0, 0.8125339497688953, 1)), (59128, (0, 0, 1)), (73910, (0, 0, 0)),
    ),
    (88692, 5): (
        (14782, (1, 1, 1, 1, 1)), (25868, (0.2872095576819475, 1, 1, 1, 1)),
        (25869, (0.2871396193434382, 0.9999695575185313, 1, 1, 1)),
        (30000, (0, 0.7445144288482357, 1, 1, 1)),
        (48042, (0, 0, 0.2871396193434382, 0.9999695575185313, 1)),
        (73910, (0, 0, 0, 0, 0)),
    ),
}  # fmt: skip

"""task=describe: published sizes and work, a count by hand, and nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from eomt_exp import cli, runs
from eomt_exp.contracts import Part
from eomt_exp.engine.model_summary import Description, PartSum, describe, part_sums
from eomt_exp.models.eomt import EoMT
from eomt_exp.paths import asset_dir
from eomt_exp.tasks import describe as task
from tests.command_line import run
from tests.planted import tiny_vit
from tests.test_spatial_experiments import load

BACKBONES = sorted(path.stem for path in (asset_dir("conf") / "backbone").glob("*.yaml"))
COCO = ("data.num_classes=133", "data.image_size=[640,640]", "recipe.num_queries=200")
CITYSCAPES = ("data.num_classes=19", "data.image_size=[1024,1024]", "recipe.num_queries=100")
# Options that are not complete, or not EoMT's, by themselves.
WITH = {
    "timm": ("backbone.name=vit_tiny_patch16_224", "backbone.embed_dim=192"),
    "scalable_vit": ("model=spatial_eomt",),
}
slow = pytest.mark.slow


def described(*overrides: str) -> Description:
    cfg = load(*overrides)
    with torch.device("meta"):
        model = runs.build_model(cfg, pretrained=False)
    found = describe(model, tuple(cfg.data.image_size))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    return found


# facts/eomt.md sections 1.7 and 3: EoMT on COCO panoptic, 640 px.
@pytest.mark.parametrize(
    ("size", "millions", "gmacs"),
    [
        ("small", 23.98, 68),
        ("base", 93.66, 216),
        pytest.param("large", 316.70, 669, marks=slow),
        pytest.param("giant", 1163.62, 2261, marks=slow),
    ],
)
def test_published_size_and_work(size: str, millions: float, gmacs: float) -> None:
    found = described(f"backbone=dinov2_{size}_reg4", *COCO)
    assert round(found.parameters / 1e6, 2) == millions
    # Short by up to 0.3 %: the paper's counter gives norms something too, and rounds.
    assert found.macs[""] / 1e9 == pytest.approx(gmacs, rel=3e-3)


@slow
def test_published_size_and_work_on_cityscapes_and_under_masks() -> None:
    found = described("backbone=dinov2_large_reg4", *CITYSCAPES)
    assert round(found.parameters / 1e6, 2) == 319.03
    # Published for both windows of a 1024 x 2048 image.
    assert 2 * found.macs[""] / 1e9 == pytest.approx(4350, rel=3e-3)
    masked = described("backbone=dinov2_large_reg4", *COCO).macs[", masked attention"]
    # Published: 828. The masks between the blocks are needed in the patches' grid only, so their
    # product with the queries has 16 times fewer cells than the published one.
    saved = 4 * (160**2 - 40**2) * 200 * 1024
    assert (masked + saved) / 1e9 == pytest.approx(828, rel=3e-3)


@slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_is_described(backbone: str) -> None:
    found = described(f"backbone={backbone}", *COCO, *WITH.get(backbone, ()))
    assert found.trained == found.parameters > 1e6  # mini has 1.7 M
    assert found.sizes["mask grid"] == "160 x 160"
    assert found.sizes.get("patch grid", "40 x 40") == "40 x 40"
    assert found.macs[", masked attention"] > found.macs[""] > 5e9


def test_multiply_accumulates_equal_a_count_by_hand() -> None:
    dim, patches, prefix, queries, classes = 48, 2 * 4, 5, 7, 5
    with torch.device("meta"):
        model = EoMT(encoder=tiny_vit((32, 64), dim=dim), num_classes=classes, num_queries=queries,
                     num_blocks=2)  # fmt: skip

    def block(tokens: int) -> int:  # qkv, projection, two layers of width 4 D; scores and mixing
        return tokens * (3 + 1 + 2 * 4) * dim**2 + 2 * tokens**2 * dim

    def doubled(cells: int) -> int:  # transposed convolution, then 3 x 3 depth-wise on its output
        return cells * 4 * dim**2 + 4 * cells * 9 * dim

    body = patches * 3 * 16**2 * dim
    body += 2 * block(prefix + patches) + 2 * block(queries + prefix + patches)
    heads = queries * (3 * dim**2 + dim * (classes + 1))
    masks = queries * dim * 16 * patches
    upscaled = doubled(patches) + doubled(4 * patches)
    prediction = heads + upscaled + masks
    # Between the blocks: masks in the patches' grid, and no classes.
    between = queries * 3 * dim**2 + upscaled + queries * dim * patches
    found = describe(model, (32, 64))
    masked = body + 2 * between + prediction
    assert found.macs == {"": body + prediction, ", masked attention": masked}
    assert found.sizes == {
        "image": "32 x 64", "patch grid": "2 x 4", "mask grid": "8 x 16",
        "tokens per image": "20", "of them prefix + patches + queries": "5 + 8 + 7",
        "queries": "7", "blocks with queries": "2",
    }  # fmt: skip
    assert (model.training, model.masked_attention) == (True, True)  # only looked at


def test_alike_blocks_share_a_line_and_what_is_frozen_does_not_count() -> None:
    frozen = nn.Parameter(torch.zeros(2, 3), requires_grad=False)
    free = nn.Parameter(torch.zeros(4))
    parts = [
        Part("embeddings", "backbone", 2, (frozen,)),
        Part("block 0", "backbone", 2, (frozen,)),
        Part("block 1", "backbone", 1, (frozen, free)),
        Part("block 2", "joint", 0, (free,)),
        Part("norm", "joint", 0, (free,)),
    ]
    assert part_sums(parts) == [
        PartSum("embeddings", 6, 0),
        PartSum("blocks 0-1", 16, 4),
        PartSum("block 2, with queries", 4, 4),
        PartSum("norm", 4, 4),
    ]


def test_the_command_prints_it_all_and_leaves_nothing(outputs: Path, capfd, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(task, "describe", lambda *given: seen.append(given[0]) or describe(*given))
    outcome = run(capfd, "task=describe", "backbone=dinov2_small_reg4", *COCO, "trainable=heads")
    assert outcome.code == 0, outcome.err
    (model,) = seen
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    lines = [re.sub(r" {2,}", " | ", line.strip()) for line in outcome.out.splitlines()]
    for line in (
        "blocks 0-8 | 15,977,088 | no",
        "blocks 9-11, with queries | 5,325,696 | no",
        "queries | 76,800 | yes",
        "total | 23.98 M | 1.76 M",
        "tokens per image | 1,805",
        "of them prefix + patches + queries | 5 + 1,600 + 200",
        "GMACs | 67.82",
        "GMACs, masked attention | 82.94",
    ):
        assert line in lines, outcome.out
    assert not outputs.exists()


def test_a_wrong_choice_is_one_line_and_leaves_nothing(outputs: Path, capfd) -> None:
    outcome = run(capfd, "task=describe", "backbone=tiny", "trainable=head")
    assert outcome.code == cli.USER_ERROR
    assert "add anomaly_head=query_only" in outcome.err
    assert not outputs.exists()


def test_a_model_of_maps_is_described_in_maps() -> None:
    overrides = ("model=spatial_eomt", "backbone=scalable_vit", "data.image_size=[64,128]")
    found = described(*overrides)
    assert found.sizes["map of stage 1"] == "16 x 32"
    assert "patch grid" not in found.sizes
    assert found.macs[""] > 0

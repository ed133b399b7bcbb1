"""Spatial EoMT: who sees whom, parts and freezing. Its encoder: test_scalable_vit.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from eomt_exp.contracts import MaskOutput
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.models.eomt import EoMT
from eomt_exp.models.spatial_eomt import Meeting, SpatialEoMT
from tests import test_model
from tests.planted import tiny_vit
from tests.test_scalable_vit import encoder_of, images_of


def small(**changes) -> SpatialEoMT:
    """Three stages of 1, 2 and 3 blocks; the queries meet the last two. Nothing starts small."""
    torch.manual_seed(0)
    options = {"num_classes": 5, "num_queries": 7, "num_blocks": 2, "head_dim": 8}
    return SpatialEoMT(encoder=encoder_of(), layer_scale=1.0, **options | changes)


def with_head() -> SpatialEoMT:
    return small(anomaly_head=QueryHead(embed_dim=32, use_entropy=True, hidden_dim=16))


def test_numbers_and_backbones_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"num_blocks.*1\.\.3"):
        small(num_blocks=4)
    with pytest.raises(ValueError, match="head_dim must divide the width 32"):
        small(head_dim=5)
    with pytest.raises(ValueError, match=r"TimmViT.*backbone=scalable_vit"):
        SpatialEoMT(encoder=tiny_vit((32, 64)), num_classes=5)
    with pytest.raises(ValueError, match=r"ScalableViT.*model=spatial_eomt"):
        EoMT(encoder=encoder_of(), num_classes=5)


each_model = pytest.mark.parametrize("make", [small, test_model.tiny])


@each_model
def test_shapes_and_supervised_blocks(make: Callable[..., SpatialEoMT | EoMT]) -> None:
    output = make().train()(images_of())
    for one in (output, *output.aux):
        assert isinstance(one, MaskOutput)
        assert (one.mask_logits.shape, one.class_logits.shape) == ((2, 7, 8, 16), (2, 7, 6))
    assert output.queries.shape == (2, 7, make().encoder.embed_dim)
    unsupervised = make(masked_attention=False).train(), make().eval()
    assert (len(output.aux), *(len(model(images_of()).aux) for model in unsupervised)) == (2, 0, 0)
    assert make(outlier_class=True)(images_of()).has_outlier_class


def test_a_masked_query_takes_from_its_own_cells_only() -> None:
    torch.manual_seed(0)
    meeting = Meeting(32, heads=4, expansion=2, layer_scale=1.0).double()
    queries, cells = torch.randn(1, 5, 32).double(), torch.randn(1, 32, 6, 9).double()
    inside = torch.ones(1, 5, 6, 9, dtype=torch.bool)
    inside[:, 3] = False
    inside[:, 3, 1:3, 1:4] = True

    def updated(changed: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        keep = None if mask is None else F.pad(mask.flatten(2), (5, 0), value=True)[:, None]
        return meeting(queries, changed, keep)[0][0]

    before = updated(cells, inside)
    far = cells.clone()
    # A cell away from the mask: its rim shapes the positions in the keys.
    far[..., 4:, :] = torch.randn(1, 32, 2, 9)
    after = updated(far, inside)
    torch.testing.assert_close(after[3], before[3], rtol=1e-12, atol=1e-13)
    assert (after - before)[[0, 1, 2, 4]].abs().amax(dim=1).min() > 1e-4
    assert not torch.allclose(updated(far, None)[3], updated(cells, None)[3])
    near = cells.clone()
    near[..., 2, 2] = torch.randn(1, 32)
    assert not torch.allclose(updated(near, inside)[3], before[3])
    inside[:, 3] = False  # an empty mask: the other queries are left
    assert updated(cells, inside).isfinite().all()


def test_each_block_is_masked_by_the_prediction_before_it() -> None:
    model = small().train()
    seen = []
    for meeting in model.meetings:
        meeting.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    output = model(images_of())
    for keep, aux in zip(seen, output.aux, strict=True):
        at_cells = F.interpolate(aux.mask_logits, size=(2, 4), mode="bilinear")
        inside = keep[:, 0, :, 7:]
        assert torch.equal(inside, (at_cells > 0).flatten(2))
        assert 0 < inside.float().mean() < 1


@each_model
def test_open_masks_equal_no_masks(make: Callable[[], SpatialEoMT | EoMT]) -> None:
    model = make().eval()
    masked = model(images_of()).mask_logits
    model.set_mask_probs([0.0, 0.0])
    opened = model(images_of()).mask_logits
    model.masked_attention = False
    assert torch.equal(opened, model(images_of()).mask_logits)
    assert not torch.allclose(opened, masked)


def test_the_map_reads_from_the_queries() -> None:
    torch.manual_seed(0)
    meeting = Meeting(32, heads=4, expansion=2, layer_scale=1.0)
    queries, cells = torch.randn(1, 5, 32), torch.randn(1, 32, 6, 9)
    _, one = meeting(queries, cells, None)
    _, other = meeting(queries + torch.randn(1, 5, 32), cells, None)
    assert one.shape == cells.shape
    assert (one - other).abs().amax(dim=1).min() > 1e-4  # every cell


def test_queries_are_a_set() -> None:
    model = small().double().eval()
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    before = model(images_of().double())
    model.q.weight.data = model.q.weight.data[order]
    after = model(images_of().double())
    torch.testing.assert_close(after.mask_logits, before.mask_logits[:, order])
    torch.testing.assert_close(after.class_logits, before.class_logits[:, order])


def test_masks_follow_what_moves() -> None:
    model = small().eval()
    thing = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(2))
    canvas = torch.full((2, 3, 64, 192), 0.5)
    canvas[0, :, 20:44, 36:60] = thing
    canvas[1, :, 20:44, 100:124] = thing  # 64 pixels, 16 cells of the masks, further right
    with torch.no_grad():
        here, there = model(canvas).mask_logits  # (Q, 16, 48) each
    here, there = (m - m.mean(dim=(1, 2), keepdim=True) for m in (here, there))

    def alike(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])

    moved = alike(here[..., 4:28], there[..., 20:44])
    stayed = alike(here[..., 4:28], there[..., 4:28])
    assert moved > 0.9
    assert stayed < moved - 0.2


@pytest.mark.parametrize("size", [(32, 64), (128, 256), (352, 480), (48, 80), (64, 32)])
def test_images_of_any_size_of_whole_cells(size: tuple[int, int]) -> None:
    model = small().eval()
    with torch.no_grad():
        output = model(images_of(*size, count=1))
    assert output.mask_logits.shape == (1, 7, size[0] // 4, size[1] // 4)
    assert output.mask_logits.isfinite().all()
    assert output.semantic_scores().std() > 0


def test_half_precision_keeps_the_sums_whole() -> None:
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        *_, cells = model.encoder.pyramid(images_of())
        assert model.encoder.block(0, cells).dtype == torch.float32
        output = model(images_of())
    whole = small().train()(images_of())
    torch.testing.assert_close(
        output.aux[0].class_logits.float(), whole.aux[0].class_logits, rtol=0.1, atol=0.05
    )


def test_parts_count_the_blocks_behind_them() -> None:
    model = with_head()
    parts = {part.name: (part.kind, part.depth) for part in model.parts()}
    blocks = [("backbone", 5), ("backbone", 4), ("backbone", 3), ("backbone", 2),
              ("joint", 1), ("joint", 0)]  # fmt: skip
    new = ("queries", "class head", "mask head", "meeting 0", "meeting 1", "pixel decoder")
    assert parts == {
        "embeddings": ("backbone", 5), "norm": ("joint", 0), "anomaly head": ("anomaly_head", 0),
        **{f"block {index}": block for index, block in enumerate(blocks)},
        **dict.fromkeys(new, ("head", 0)),
    }  # fmt: skip
    layers = [layer for stage in model.encoder.backbone.layers for layer in stage[0].layers]
    for index, layer in enumerate(layers):
        (part,) = (part for part in model.parts() if part.name == f"block {index}")
        assert {*map(id, layer.parameters())} <= {*map(id, part.parameters)}

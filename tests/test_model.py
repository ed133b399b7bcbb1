"""EoMT on a tiny ViT: names, masking, the outlier class, freezing."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch.nn import functional as F

from eomt_exp.engine.optim import annealing_steps, mask_probs
from eomt_exp.engine.trainer import allow_graphs
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.models.eomt import EoMT
from eomt_exp.models.scale_block import ScaleBlock
from tests.planted import tiny_vit

SIZE = (32, 64)


def tiny(**changes) -> EoMT:
    torch.manual_seed(0)
    encoder = tiny_vit(SIZE)
    for block in encoder.backbone.blocks:  # DINOv2 starts at 1e-5: its blocks would do nothing
        block.ls1.gamma.data.uniform_(0.5, 1.5)
        block.ls2.gamma.data.uniform_(0.5, 1.5)
    return EoMT(encoder=encoder, **{"num_classes": 5, "num_queries": 7, "num_blocks": 2} | changes)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_state_dict_has_the_official_names() -> None:
    names = set(tiny().state_dict())
    assert names >= {
        "attn_mask_probs", "q.weight", "class_head.weight", "mask_head.4.bias",
        "encoder.pixel_mean", "encoder.backbone.cls_token", "encoder.backbone.reg_token",
        "encoder.backbone.blocks.3.attn.qkv.weight", "encoder.backbone.blocks.0.ls1.gamma",
        "upscale.1.conv1.weight", "upscale.0.conv2.weight", "upscale.0.norm.bias",
    }  # fmt: skip
    assert "upscale.0.conv2.bias" not in names


def test_a_query_sees_only_its_own_mask() -> None:
    model = tiny()
    logits = torch.full((1, 7, 2, 4), -1.0)
    logits[0, 3, 1, 2] = 1.0
    keep = model._keep(logits, (2, 4), 1.0, front=7 + 5)
    assert keep.shape == (1, 1, 7, 20)  # only queries are ever masked
    row = keep[0, 0, 3]
    # Queries, class and register tokens, and the one cell.
    assert row.nonzero().flatten().tolist() == [*range(12), 12 + 1 * 4 + 2]


def test_half_annealed_evaluation_is_random_only_on_request(images: torch.Tensor) -> None:
    for quirks in (False, True):
        model = tiny(official_quirks=quirks).eval()
        model.set_mask_probs([0.5, 0.3])
        outputs = [model(images).class_logits for _ in range(4)]
        assert quirks == any(not torch.equal(outputs[0], other) for other in outputs[1:])


def with_head() -> EoMT:
    return tiny(anomaly_head=QueryHead(embed_dim=48, use_entropy=True, hidden_dim=16))


def test_what_a_model_cannot_do_is_named() -> None:
    with pytest.raises(ValueError, match=r"1\.\.4"):
        tiny(num_blocks=5)
    with pytest.raises(ValueError, match="anomaly_head=query_only"):
        tiny().set_trainable("head")


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_the_forward_is_one_graph(masked: bool, images: torch.Tensor) -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    model, plain = (tiny(masked_attention=masked) for _ in range(2))
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled.eval()(images).mask_logits, plain.eval()(images).mask_logits)
    assert graphs.frame_count == 1
    if masked:  # annealing must not compile anew at every step
        for step in range(5):
            model.set_mask_probs([1 - step / 10, 1 - step / 20])
            compiled.train()(images)
        assert graphs.frame_count <= 4


@pytest.mark.slow
def test_a_whole_annealing_stays_compiled(images: torch.Tensor) -> None:
    torch._dynamo.reset()
    allow_graphs(4)
    model = tiny(num_blocks=4)
    annealing = annealing_steps(None, 48, 4)
    # fullgraph: an error, not a fall back, where a graph breaks or there are too many of them.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for step in range(49):
        model.set_mask_probs(mask_probs(step, annealing))
        compiled.train()(images)
        with torch.no_grad():
            compiled.eval()(images)


def test_the_scale_block_as_a_matrix_product_equals_the_convolution() -> None:
    torch.manual_seed(0)
    block = ScaleBlock(12).double()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64, requires_grad=True)
    grain = torch.randn(2, 12, 6, 10, dtype=torch.float64)
    wanted = [x, *block.parameters()]
    product = block(x)
    convolution = block.norm(block.conv2(block.act(block.conv1(x))))
    torch.testing.assert_close(product, convolution, rtol=1e-12, atol=1e-12)
    one, other = (torch.autograd.grad((y * grain).sum(), wanted) for y in (product, convolution))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(block(x), product, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_coarse_masks_equal_full_ones_made_smaller(patch_size: int) -> None:
    """Where only the grid's masks are wanted, the finest features are shrunk before the product."""
    torch.manual_seed(0)
    encoder = tiny_vit((64, 96), patch_size=patch_size, depth=1)
    model = EoMT(encoder=encoder, num_classes=3, num_queries=7, num_blocks=1).double().eval()
    for block in model.upscale:  # norms that change something
        torch.nn.init.normal_(block.norm.weight)
        torch.nn.init.normal_(block.norm.bias)
    grid = (64 // patch_size, 96 // patch_size)
    tokens = torch.randn(2, 7 + 5 + grid[0] * grid[1], 48, dtype=torch.float64)
    with torch.inference_mode():
        masks = model._output(tokens, grid).mask_logits
        wanted = F.interpolate(masks, size=grid, mode="bilinear", align_corners=False)
        coarse = model._coarse_masks(tokens, grid)
    torch.testing.assert_close(coarse, wanted, rtol=1e-12, atol=1e-12)


def test_the_masks_of_a_training_equal_those_of_an_evaluation() -> None:
    """With gradients the product runs the other way round, and they lie as the features do."""
    model = tiny().double()
    queries = torch.randn(2, 7, 48, dtype=torch.float64)
    features = torch.randn(2, 48, 6, 10, dtype=torch.float64)
    features = features.contiguous(memory_format=torch.channels_last)
    weights = torch.randn(2, 7, 6, 10, dtype=torch.float64)
    plain = model._masks(queries, features)
    masks = model._masks(queries, leaf := features.clone().requires_grad_())
    (gradient,) = torch.autograd.grad((masks * weights).sum(), leaf)
    assert gradient.is_contiguous(memory_format=torch.channels_last), "as they lie, without a copy"
    torch.testing.assert_close(masks, plain, rtol=1e-13, atol=1e-13)
    literal = torch.einsum("bqhw,bqd->bdhw", weights, model.mask_head(queries))
    torch.testing.assert_close(gradient, literal, rtol=1e-13, atol=1e-13)

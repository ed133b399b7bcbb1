"""EoMT on a tiny ViT: names, masking, the outlier class, freezing."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import save_file
from torch.nn import functional as F

from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.contracts import Backbone, CheckpointError, MaskOutput
from eomt_exp.engine.optim import annealing_steps, mask_probs
from eomt_exp.engine.trainer import allow_graphs
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.models.eomt import EoMT
from eomt_exp.models.scale_block import ScaleBlock

SIZE = (32, 64)


def tiny(**changes) -> EoMT:
    torch.manual_seed(0)
    encoder = TimmViT(
        name="vit_small_patch14_reg4_dinov2",
        image_size=SIZE,
        embed_dim=48,
        overrides={"embed_dim": 48, "depth": 4, "num_heads": 3},
    )
    for block in encoder.backbone.blocks:  # DINOv2 starts at 1e-5: its blocks would do nothing
        block.ls1.gamma.data.uniform_(0.5, 1.5)
        block.ls2.gamma.data.uniform_(0.5, 1.5)
    return EoMT(encoder=encoder, **{"num_classes": 5, "num_queries": 7, "num_blocks": 2} | changes)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_state_dict_has_the_official_names() -> None:
    names = set(tiny().state_dict())
    expected = {
        "attn_mask_probs", "q.weight", "class_head.weight", "mask_head.4.bias",
        "encoder.pixel_mean", "encoder.backbone.cls_token", "encoder.backbone.reg_token",
        "encoder.backbone.blocks.3.attn.qkv.weight", "encoder.backbone.blocks.0.ls1.gamma",
        "upscale.1.conv1.weight", "upscale.0.conv2.weight", "upscale.0.norm.bias",
    }  # fmt: skip
    assert expected <= names
    assert "upscale.0.conv2.bias" not in names


def test_published_size_of_vit_small_640() -> None:
    with torch.device("meta"):
        encoder = TimmViT(
            name="vit_small_patch14_reg4_dinov2", image_size=(640, 640), embed_dim=384
        )
        model = EoMT(encoder=encoder, num_classes=133, num_queries=200, num_blocks=3)
    total = sum(p.numel() for p in model.parameters())
    assert total == pytest.approx(23.98e6, abs=5e3)  # facts/eomt.md section 1.7


def test_backbone_keeps_its_protocol() -> None:
    assert isinstance(tiny().encoder, Backbone)


def test_shapes_and_supervised_blocks(images: torch.Tensor) -> None:
    output = tiny().train()(images)
    assert output.mask_logits.shape == (2, 7, 8, 16)
    assert output.class_logits.shape == (2, 7, 6)
    assert [type(o) for o in output.aux] == [MaskOutput] * 2
    assert tiny(masked_attention=False).train()(images).aux == ()


def test_open_masks_equal_no_masks(images: torch.Tensor) -> None:
    model = tiny().eval()
    masked = model(images).mask_logits
    model.set_mask_probs([0.0, 0.0])
    opened = model(images).mask_logits
    model.masked_attention = False
    assert torch.equal(opened, model(images).mask_logits)
    assert not torch.allclose(opened, masked)


def test_a_query_sees_only_its_own_mask() -> None:
    model = tiny()
    logits = torch.full((1, 7, 2, 4), -1.0)
    logits[0, 3, 1, 2] = 1.0
    keep = model._keep(logits, 1.0, torch.zeros(1, 7 + 5 + 8, 48), (2, 4))
    assert keep.shape == (1, 1, 7, 20)  # only queries are ever masked
    row = keep[0, 0, 3]
    assert row[:12].all()  # queries, class and register tokens
    assert row[12:].nonzero().flatten().tolist() == [1 * 4 + 2]


def test_half_annealed_evaluation_is_no_lottery(images: torch.Tensor) -> None:
    model = tiny().eval()
    model.set_mask_probs([0.5, 0.3])
    assert torch.equal(model(images).class_logits, model(images).class_logits)


def with_head() -> EoMT:
    return tiny(anomaly_head=QueryHead(embed_dim=48, use_entropy=True, hidden_dim=16))


def test_trainable_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="anomaly_head=query_only"):
        tiny().set_trainable("head")
    with pytest.raises(ValueError, match="head, heads, last_blocks, all"):
        tiny().set_trainable("everything")


def test_num_blocks_beyond_the_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.\.4"):
        tiny(num_blocks=5)


def test_image_size_off_the_patch_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of patch_size=16"):
        TimmViT(name="vit_tiny_patch16_224", image_size=(30, 64), embed_dim=192)


def test_backbone_weights_are_resampled_to_the_image_size(tmp_path) -> None:
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    options = {"name": "vit_tiny_patch16_224", "embed_dim": 48, "overrides": small}
    trained = TimmViT(image_size=(64, 64), **options)
    state = {k: v.half() for k, v in trained.backbone.state_dict().items()}
    save_file(state | {"head.weight": torch.zeros(10, 48)}, tmp_path / "vit.safetensors")
    loaded = TimmViT(image_size=SIZE, weights=str(tmp_path / "vit.safetensors"), **options)
    assert loaded.backbone.pos_embed.shape == (1, 1 + 2 * 4, 48)
    assert torch.equal(loaded.backbone.blocks[1].mlp.fc1.weight,
                       state["blocks.1.mlp.fc1.weight"].float())  # fmt: skip
    other = dict(options, overrides=small | {"depth": 3})
    with pytest.raises(CheckpointError, match="another backbone"):
        TimmViT(image_size=SIZE, weights=str(tmp_path / "vit.safetensors"), **other)
    with pytest.raises(CheckpointError, match=r"paths\.deit_tiny=/path"):
        TimmViT(image_size=SIZE, needs_weights="paths.deit_tiny", **options)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_spelled_out_equals_the_fused_one(masked: bool, monkeypatch) -> None:
    model = tiny().double().train()
    images = torch.rand(2, 3, *SIZE, dtype=torch.float64)
    model.masked_attention = masked

    def result() -> list[torch.Tensor]:
        model.zero_grad()
        output = model(images)
        (output.mask_logits.square().mean() + output.class_logits.square().mean()).backward()
        return [output.mask_logits, output.class_logits, model.encoder.backbone.pos_embed.grad]

    plain = [value.clone() for value in result()]
    monkeypatch.setattr("eomt_exp.backbones.attention.PLAIN_TOKENS_FLOAT", 0)
    fused = result()
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_the_forward_is_one_graph(masked: bool, images: torch.Tensor) -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    model = tiny(masked_attention=masked)
    plain = tiny(masked_attention=masked)
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


def test_the_official_lottery_is_there_on_request(images: torch.Tensor) -> None:
    model = tiny(official_quirks=True).eval()
    model.set_mask_probs([0.5, 0.5])
    outputs = [model(images).class_logits for _ in range(4)]
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_mask_probs_are_read_back_from_a_file() -> None:
    model, other = tiny(), tiny()
    model.set_mask_probs([0.0, 0.25])
    other.load_state_dict(model.state_dict())
    assert other._probs == [0.0, 0.25]


def test_the_scale_block_as_a_matrix_product_equals_the_convolution() -> None:
    torch.manual_seed(0)
    block = ScaleBlock(12).double()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64, requires_grad=True)
    grain = torch.randn(2, 12, 6, 10, dtype=torch.float64)
    wanted = [x, *block.parameters()]
    product = block(x)
    convolution = block.norm(block.conv2(block.act(block.conv1(x))))
    torch.testing.assert_close(product, convolution, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad((product * grain).sum(), wanted),
        torch.autograd.grad((convolution * grain).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(block(x), product, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_coarse_masks_equal_full_ones_made_smaller(patch_size: int) -> None:
    """Where only the grid's masks are wanted, the finest features are shrunk before the product."""
    torch.manual_seed(0)
    encoder = TimmViT(
        name="vit_small_patch14_reg4_dinov2",
        image_size=(64, 96),
        embed_dim=48,
        patch_size=patch_size,
        overrides={"embed_dim": 48, "depth": 1, "num_heads": 3},
    )
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

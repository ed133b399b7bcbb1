"""vit-pytorch's ViT and SimpleViT as encoders: the library's numbers, plus masks and sizes."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from eomt_exp.backbones.vit_pytorch import VitPytorchSimpleViT, VitPytorchViT
from eomt_exp.contracts import Backbone
from eomt_exp.models.eomt import EoMT

SIZE = (32, 64)
PREFIX = {VitPytorchViT: 1, VitPytorchSimpleViT: 0}
both = pytest.mark.parametrize("kind", PREFIX, ids=lambda kind: kind.__name__)


def tiny(kind, **changes):
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "embed_dim": 48, "depth": 3, "heads": 3, "mlp_dim": 96}
    return kind(**sizes | {"dim_head": 20} | changes).double().eval()


def images_of(height: int = SIZE[0], width: int = SIZE[1]) -> Tensor:
    seeded = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=seeded)


def library(encoder, images: Tensor) -> Tensor:
    """What the library itself has behind its last norm, (B, P + h*w, D)."""
    caught = []
    hook = encoder.backbone.transformer.register_forward_hook(lambda *io: caught.append(io[2]))
    encoder.backbone((images - encoder.pixel_mean) / encoder.pixel_std)
    hook.remove()
    return caught[0]


def forward(encoder, images: Tensor) -> Tensor:
    tokens = encoder.embed(images).values
    for index in range(len(encoder.blocks)):
        tokens = encoder.block(index, tokens, None, None)
    return encoder.norm(tokens)


@both
@pytest.mark.parametrize("one_narrow_head", [False, True])
def test_unmasked_tokens_are_the_librarys(kind, one_narrow_head: bool) -> None:
    # One head as wide as the tokens: the library's ViT then has no output projection.
    encoder = tiny(kind, **({"heads": 1, "dim_head": 48} if one_narrow_head else {}))
    assert isinstance(encoder, Backbone)
    assert not [name for name in encoder.state_dict() if "head." in name]
    expected = library(encoder, images_of())
    assert expected.shape == (2, PREFIX[kind] + 2 * 4, 48)
    torch.testing.assert_close(forward(encoder, images_of()), expected, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("autograd", [False, True])  # attention is spelled out with, fused without
def test_a_masked_query_equals_literal_attention(kind, autograd: bool) -> None:
    encoder, tokens = tiny(kind), torch.randn(2, 5 + 9, 48, dtype=torch.float64)
    keep = torch.rand(2, 1, 5, 14) > 0.5
    keep[..., :5] = True
    with torch.set_grad_enabled(autograd):
        masked = encoder.block(1, tokens, None, keep)
    attention, feed_forward = encoder.blocks[1]
    everything = torch.cat([keep, torch.ones(2, 1, 9, 14, dtype=torch.bool)], dim=2)
    query, key, value = (
        part.view(2, 14, 3, 20).transpose(1, 2)
        for part in attention.to_qkv(attention.norm(tokens)).chunk(3, dim=-1)
    )
    scores = (query @ key.transpose(-2, -1) / 20**0.5).masked_fill(~everything, float("-inf"))
    mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(2, 14, 60)
    literal = tokens + attention.to_out(mixed)
    literal = literal + feed_forward(literal)
    torch.testing.assert_close(masked, literal, rtol=1e-12, atol=1e-12)
    unmasked = encoder.block(1, tokens, None, None)
    assert not torch.allclose(masked[:, :5], unmasked[:, :5])
    torch.testing.assert_close(masked[:, 5:], unmasked[:, 5:], rtol=1e-12, atol=1e-12)


def test_learned_positions_are_interpolated_and_the_class_token_left_alone() -> None:
    encoder = tiny(VitPytorchViT)
    # Positions that are a straight line over the columns stay one, away from the rim.
    line = torch.arange(4.0).repeat(2)[:, None].expand(-1, 48)
    encoder.backbone.pos_embedding.data[1:] = line
    bigger = encoder._with_positions(torch.zeros(1, 32, 48), (4, 8))[0]
    first = encoder.backbone.cls_token[0] + encoder.backbone.pos_embedding[0]
    assert torch.equal(bigger[0], first)
    rows = bigger[1:].view(4, 8, 48)
    assert torch.allclose(rows[0], rows[3])
    assert rows[0, 3:5, 0].tolist() == pytest.approx([1.25, 1.75], abs=0.1)
    assert (rows[0, 1:, 0] > rows[0, :-1, 0]).all()


def test_sines_of_another_size_are_those_it_would_be_built_with() -> None:
    small, large = (tiny(VitPytorchSimpleViT, image_size=size) for size in (SIZE, (48, 80)))
    large.load_state_dict(small.state_dict())  # positions are no weights: sizes do not matter
    images = images_of(48, 80)
    ours = forward(small, images)
    assert torch.equal(ours, forward(large, images))
    torch.testing.assert_close(ours, library(large, images), rtol=1e-12, atol=1e-12)


def test_parameters_with_a_batch_dimension_work_too() -> None:
    encoder = tiny(VitPytorchViT)
    expected = forward(encoder, images_of())
    for name in ("cls_token", "pos_embedding"):
        setattr(encoder.backbone, name, nn.Parameter(getattr(encoder.backbone, name)[None]))
    assert torch.equal(forward(encoder, images_of()), expected)


@both
def test_images_of_other_sizes_run_on_the_meta_device_too(kind) -> None:
    tokens = tiny(kind).embed(images_of(48, 80))
    assert (tokens.grid, tokens.values.shape) == ((3, 5), (2, PREFIX[kind] + 15, 48))
    assert tokens.values.isfinite().all()
    with torch.device("meta"):
        encoder = kind(image_size=SIZE, embed_dim=48, depth=2, heads=3, mlp_dim=96)
        model = EoMT(encoder=encoder, num_classes=5, num_queries=7)
        for size in (SIZE, (48, 80)):
            output = model(torch.empty(1, 3, *size))
            assert output.mask_logits.shape == (1, 7, size[0] // 4, size[1] // 4)


@both
def test_sizes_that_do_not_fit_are_refused_by_name(kind) -> None:
    wanted = r"data\.image_size must be multiples of patch_size=16, got \(30, 64\); try \[32, 64\]"
    with pytest.raises(ValueError, match=wanted):
        tiny(kind, image_size=(30, 64))
    with pytest.raises(ValueError, match=r"image sides must be .*got \(32, 60\)"):
        tiny(kind).embed(images_of(32, 60))
    if kind is VitPytorchSimpleViT:  # a width without room for sine and cosine of row and column
        with pytest.raises(ValueError, match=r"multiple of 4.*got 46.*backbone\.embed_dim=48"):
            tiny(kind, embed_dim=46)


@both
def test_a_missing_library_says_what_to_type(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "vit_pytorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vit_pytorch", None)
    with pytest.raises(ValueError, match=r"pip install .*\[vit-pytorch\]"):
        tiny(kind)

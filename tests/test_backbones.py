"""timm's ViTs as backbones: timm's own numbers, weights that fit any size, and refusals.

Everything is compared with timm's unchanged forward or with a formula written out here, in float64
on small variants whose LayerScale is randomised: at its default of 1e-5 blocks would do nothing.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import huggingface_hub.constants
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.backbones import attention
from eomt_exp.backbones.attention import attend
from eomt_exp.backbones.pixel_encoder import IMAGENET_MEAN, IMAGENET_STD
from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.contracts import CheckpointError
from eomt_exp.models.eomt import EoMT
from eomt_exp.paths import asset_dir

SIZE, OTHER_SIZE = (32, 64), (80, 48)
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
DINOV2, DINOV3 = "vit_small_patch14_dinov2", "vit_small_patch16_dinov3_qkvb"
VARIANTS = {
    "class token": "vit_tiny_patch16_224",
    "two class tokens": "deit_tiny_distilled_patch16_224",
    "DINOv2": DINOV2,
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv2 giant": "vit_giant_patch14_reg4_dinov2",  # packed SwiGLU
    "DINOv3": DINOV3,
    "DINOv3 plus": "vit_small_plus_patch16_dinov3_qkvb",  # SwiGLU of two projections
    "norm before the blocks": "vit_base_patch16_clip_224",
    "norm behind the pooling": "vit_medium_patch16_reg4_gap_256",
    "pooling by attention": "vit_base_patch16_siglip_256",
    "EVA02, norm behind the pooling": "eva02_base_patch14_224",
    "EVA02, norms in attention and MLP": "eva02_base_patch16_clip_224",
}
each_variant = pytest.mark.parametrize("name", VARIANTS.values(), ids=VARIANTS.keys())


def small(name: str, size: tuple[int, int] = SIZE, **changes: Any) -> TimmViT:
    """A small ViT with all its parameters moved off their special first values."""
    torch.manual_seed(0)
    overrides = SMALL | changes
    vit = TimmViT(name=name, image_size=size, embed_dim=48, overrides=overrides).eval()
    for parameter in vit.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return vit


def some_images(size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def forward(vit: TimmViT, images: Tensor) -> Tensor:
    tokens, _, positions = vit.embed(images)
    for index in range(len(vit.blocks)):
        tokens = vit.block(index, tokens, positions, None)
    return vit.norm(tokens)


def timms_forward(model: Any, images: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).to(images)
    return model.forward_features((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))


@each_variant
def test_the_forward_pass_is_timms_own_and_without_gradients_bit_for_bit(name: str) -> None:
    vit, images = small(name), some_images(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(forward(vit, images), timms_forward(vit.backbone, images))
    vit, images = vit.double(), some_images()
    torch.testing.assert_close(
        forward(vit, images), timms_forward(vit.backbone, images), rtol=0, atol=1e-12
    )


@each_variant
def test_queries_are_masked_as_by_a_mask_over_all_rows(name: str) -> None:
    vit = small(name).double()
    tokens, grid, positions = vit.embed(some_images())
    queries = 7
    tokens = torch.cat([torch.randn(2, queries, 48, dtype=torch.float64), tokens], dim=1)
    keep = torch.ones(2, 1, queries, tokens.shape[1], dtype=torch.bool)
    keep[..., -grid[0] * grid[1] :] = torch.rand(2, 1, queries, grid[0] * grid[1]) > 0.6
    full = torch.ones(2, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    full[:, :, :queries] = keep
    for index, block in enumerate(vit.blocks):
        ours = vit.block(index, tokens, positions, keep)
        arguments: dict[str, Any] = {"attn_mask": full}
        if positions is not None:  # only now, as we are to need no such change
            block.attn.num_prefix_tokens += queries
            arguments["rope"] = positions
        theirs = block(tokens, **arguments)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert not torch.allclose(ours, vit.block(index, tokens, positions, None))
        tokens = theirs


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "fused"])
def test_split_attention_is_attention_under_one_full_mask(is_plain: bool, monkeypatch) -> None:
    monkeypatch.setattr(attention, "PLAIN_TOKENS_FLOAT", 10**6 if is_plain else 0)
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 20, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    keep = torch.rand(2, 1, 6, 20) > 0.5
    keep[..., 0] = True
    function = "scaled_dot_product_attention"
    with mock.patch.object(F, function, wraps=getattr(F, function)) as fused:
        split = attend(*parts, keep)
    assert fused.call_count == (0 if is_plain else 2)
    full = torch.ones(2, 1, 20, 20, dtype=torch.bool)
    full[:, :, :6] = keep
    query, key, value = parts
    scores = query @ key.transpose(-2, -1) / 8**0.5
    literal = scores.masked_fill(~full, float("-inf")).softmax(dim=-1) @ value
    torch.testing.assert_close(split, literal, rtol=0, atol=1e-13)
    towards = torch.randn_like(split)
    ours, theirs = (torch.autograd.grad((out * towards).sum(), parts) for out in (split, literal))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", DINOV2, "vit_small_patch14_reg4_dinov2", DINOV3),
        *("eva02_tiny_patch14_224", "vit_medium_patch16_rope_reg1_gap_256"),  # positions twice
    ],
)
def test_another_size_at_run_time_is_timms_dynamic_size(name: str) -> None:
    vit, images = small(name).double(), some_images(OTHER_SIZE)
    options = {"img_size": SIZE, "patch_size": 16, "num_classes": 0, "dynamic_img_size": True}
    dynamic = timm.create_model(name, **options, **SMALL).double().eval()
    norm = "fc_norm" if "fc_norm.weight" in dynamic.state_dict() else "norm"
    state = vit.backbone.state_dict()
    for name in ("weight", "bias"):
        state[f"{norm}.{name}"] = state.pop(f"norm.{name}")
    dynamic.load_state_dict(state)
    ours, theirs = forward(vit, images), timms_forward(dynamic, images)
    if norm != "norm":  # timm's own forward has it behind the pooling
        theirs = dynamic.fc_norm(theirs)
    assert ours.shape[1] == vit.backbone.num_prefix_tokens + 5 * 3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_an_image_off_the_patch_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of patch_size=16, got \(32, 60\)"):
        small(DINOV3).embed(torch.rand(1, 3, 32, 60))
    with pytest.raises(ValueError, match=r"data.image_size must be multiples of patch_size=16"):
        small(DINOV3, size=(30, 64))


# DINOv2's own sizes: patches of 14 px, 37 x 37 of them.
@pytest.fixture(scope="module")
def dinov2_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(DINOV2, img_size=518, patch_size=14, **SMALL)
    for parameter in model.parameters():
        parameter.data.normal_()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def dinov2_file(dinov2_state: dict[str, Tensor], tmp_path) -> str:
    save_file(dinov2_state, tmp_path / "dinov2.safetensors")
    return str(tmp_path / "dinov2.safetensors")


def dinov2(weights: str | None = None, **changes: Any) -> TimmViT:
    options = {"name": DINOV2, "image_size": (640, 320), "embed_dim": 48, "overrides": SMALL}
    return TimmViT(weights=weights, **options | changes)


def resize_matrix(antialias: bool) -> Tensor:
    """(256, 196): how bicubic interpolation makes 16 x 16 pixels of 14 x 14, one unit at a time."""
    units = torch.eye(196, dtype=torch.float64).view(196, 1, 14, 14)
    wide = F.interpolate(units, (16, 16), mode="bicubic", antialias=antialias, align_corners=False)
    return wide.flatten(1).T


def test_the_patch_kernel_is_resampled_by_the_pseudo_inverse(dinov2_state, dinov2_file) -> None:
    """FlexiViT (Beyer et al., CVPR 2023), eq. 4: w' = pinv(R^T) w, so that <R x, w'> = <x, w>."""
    resize = resize_matrix(antialias=True)
    narrow = dinov2_state["patch_embed.proj.weight"].double().flatten(2)  # (48, 3, 196)
    wide = dinov2(dinov2_file).backbone.patch_embed.proj.weight.double().flatten(2)
    torch.testing.assert_close(wide, narrow @ torch.linalg.pinv(resize.T).T, rtol=0, atol=1e-4)
    patch = torch.rand(3, 196, dtype=torch.float64)
    same = torch.einsum("dcp,cp->d", wide, patch @ resize.T)
    torch.testing.assert_close(same, torch.einsum("dcp,cp->d", narrow, patch), rtol=0, atol=1e-3)
    other = narrow @ torch.linalg.pinv(resize_matrix(antialias=False).T).T
    assert (wide - other).abs().max() > 0.1


def test_positions_are_resampled_with_antialiasing(dinov2_state, dinov2_file) -> None:
    before, after = dinov2_state["pos_embed"], dinov2(dinov2_file).backbone.pos_embed
    assert torch.equal(before[:, :1], after[:, :1])  # the class token has no place
    places = before[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)

    def resized(antialias: bool) -> Tensor:
        wide = F.interpolate(places, (40, 20), mode="bicubic", antialias=antialias)
        return wide.flatten(2).transpose(1, 2)

    torch.testing.assert_close(after[:, 1:], resized(antialias=True), rtol=0, atol=1e-5)
    assert (after[:, 1:] - resized(antialias=False)).abs().max() > 0.1


def test_a_file_may_be_in_half_precision_and_have_heads(tmp_path) -> None:
    vit = small("vit_base_patch16_siglip_256")
    state = {name: value.half() for name, value in vit.backbone.state_dict().items()}
    heads = {f"{head}.weight": torch.ones(1) for head in ("head", "head_dist", "attn_pool.kv")}
    path = tmp_path / "vit.safetensors"
    save_file(state | heads, path)
    again = dinov2(
        str(path), image_size=SIZE, name="vit_base_patch16_siglip_256"
    ).backbone.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(value, state[name].float()) for name, value in again.items())


def test_files_that_do_not_fit_are_named(tmp_path, dinov2_file) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors do not exist"):
        dinov2(str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"dinov2\.safetensors holds another backbone \(it has no reg_token\)"
    ):
        dinov2(dinov2_file, name="vit_small_patch14_reg4_dinov2")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "dinov2.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is no whole"):
        dinov2(str(cut))
    with pytest.raises(CheckpointError, match=r"paths\.deit_tiny=/path"):
        dinov2(needs_weights="paths.deit_tiny")


def test_a_norm_behind_the_pooling_is_moved_to_the_tokens(tmp_path) -> None:
    """timm's *_gap models have no norm over tokens: theirs is `fc_norm`, and so say their files."""
    name, options = "vit_medium_patch16_reg4_gap_256", {"img_size": SIZE, "patch_size": 16, **SMALL}
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5, **options).eval()
    theirs.fc_norm.weight.data.normal_()
    assert isinstance(theirs.norm, torch.nn.Identity)
    save_file(theirs.state_dict(), tmp_path / "gap.safetensors")
    vit = dinov2(str(tmp_path / "gap.safetensors"), image_size=SIZE, name=name).eval()
    images = some_images(dtype=torch.float32)
    torch.testing.assert_close(forward(vit, images), theirs.fc_norm(timms_forward(theirs, images)))
    assert {n for n, _ in vit.named_parameters() if "norm." in n} >= {"backbone.norm.weight"}
    assert not any("fc_norm" in n or "head" in n for n in vit.state_dict())


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))


@pytest.mark.usefixtures("offline")
def test_pretrained_loads_what_a_weights_file_would_give_and_such_a_file_goes_first(
    dinov2_file: str,
) -> None:
    overlay = {"pretrained_cfg_overlay": {"file": dinov2_file}}
    ours = dinov2(dinov2_file).state_dict()
    for changes in ({"overrides": SMALL | overlay}, {"weights": dinov2_file}):
        theirs = dinov2(pretrained=True, **changes)
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.items())


@pytest.mark.usefixtures("offline")
def test_a_download_that_fails_and_what_is_wrong_before_it_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"weights=/path.*backbone\.pretrained=false"):
        dinov2(pretrained=True)
    with pytest.raises(ValueError, match=r"48 wide.*set backbone\.embed_dim=48"):
        dinov2(pretrained=True, embed_dim=64)


UNSUPPORTED = {
    "swin_tiny_patch4_window7_224": "Take a VisionTransformer",
    "resnet18": "img_size",
    "vit_tiny_r_s16_p8_224": "cannot be built",  # a convolutional stem
    "vit_relpos_small_patch16_224": "VisionTransformerRelPos",
    "beit_base_patch16_224": "Beit",
    "vit_base_patch16_xp_224": "ParallelScalingBlock",
    "vit_small_patch16_18x2_224": "ParallelThingsBlock",
    "vit_base_patch16_rpn_224": "ResPostBlock",
    "vit_dwee_patch16_reg1_gap_256": "DiffAttention",
    "eva02_enormous_patch14_clip_224": "EvaBlockPostNorm",
    "vit_small_patch16_rope_224": "AttentionRope",
    "vit_intern300m_patch14_448": "no last norm",
    "vit_tinny": "timm.list_models",
}


@pytest.mark.parametrize(("name", "reason"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_what_is_no_plain_vit_is_refused_by_name(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"{name}.*{reason}"):
        TimmViT(name=name, image_size=SIZE, embed_dim=48)


def test_overrides_that_change_the_forward_pass_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224.*patch_drop_rate must be 0"):
        small("vit_tiny_patch16_224", patch_drop_rate=0.5)
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224.*num_head"):
        small("vit_tiny_patch16_224", num_head=3)
    # No ViT of timm has gated attention yet; its attention can.
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, **SMALL)
    model.blocks[1].attn.gate = torch.nn.Linear(48, 48)
    with (
        mock.patch.object(timm, "create_model", return_value=model),
        pytest.raises(ValueError, match=r"vit_tiny_patch16_224 .*gated attention"),
    ):
        small("vit_tiny_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern", ["vit_*dinov2*", "vit_*dinov3*_qkvb", "deit*", "vit_*_patch16_224"]
)
def test_whole_families_of_timm_build(pattern: str) -> None:
    names = timm.list_models(pattern)
    if pattern == "vit_*_patch16_224":
        sizes = ("tiny", "small", "base", "large")
        names = [name for name in names if name in {f"vit_{size}_patch16_224" for size in sizes}]
    assert len(names) >= 4
    for name in names:
        with torch.device("meta"):
            # Refused for its width alone, with the right one in the message: then it builds.
            with pytest.raises(ValueError, match=r"embed_dim=1; set backbone") as refusal:
                TimmViT(name=name, image_size=(224, 224), embed_dim=1)
            dim = int(str(refusal.value).rstrip(".").rpartition("=")[2])
            assert TimmViT(name=name, image_size=(224, 224), embed_dim=dim).norm.weight.numel()


def dinov3_in_training() -> TimmViT:
    overrides = OmegaConf.load(asset_dir("conf") / "backbone" / "dinov3_small.yaml").overrides
    return small(DINOV3, **overrides).train()


def test_rotary_angles_are_dinov3s() -> None:
    """Angle 2 pi c / 100^(4 k / d) for cell centres c in [-1, 1]; in float32, not the bfloat16 of
    Meta's own files, as transformers has it and so EoMT.
    """
    angles = small(DINOV3).embed(some_images(dtype=torch.float32)).positions
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in (2, 4))
    centres = torch.cartesian_prod((rows + 0.5) / 2, (columns + 0.5) / 4) * 2 - 1  # (8, 2)
    periods = 100 ** (4 * torch.arange(4, dtype=torch.float64) / 16)
    turns = (2 * torch.pi * centres[:, :, None] / periods).flatten(1).tile(2)
    expected = torch.cat([turns.sin(), turns.cos()], dim=1)
    torch.testing.assert_close(angles.double(), expected, rtol=0, atol=1e-6)


def scale_of(angles: Tensor, reference: Tensor) -> Tensor:
    """The one factor between two sets of coordinates, read off the slowest angle of each axis."""
    turns, base = (torch.atan2(a[:, :16], a[:, 16:])[:, [3, 7]] for a in (angles, reference))
    factors = turns / base
    torch.testing.assert_close(factors, factors[:1, :1].expand_as(factors))
    return factors[0, 0]


def test_training_rescales_the_coordinates_of_dinov3_once_a_forward() -> None:
    vit, images = dinov3_in_training(), some_images(dtype=torch.float32)
    draws = [vit.embed(images).positions for _ in range(200)]
    reference = vit.eval().embed(images).positions
    assert torch.equal(reference, vit.embed(images).positions)
    factors = torch.stack([scale_of(angles, reference) for angles in draws])
    assert factors.unique().numel() > 190
    assert 0.5 - 1e-5 <= factors.min() < 0.55  # both ends are reached ...
    assert 1.8 < factors.max() <= 2 + 1e-5
    assert (factors < 1).float().mean() == pytest.approx(0.5, abs=0.12)  # ... log-uniformly
    plain = small(DINOV3).train()
    assert torch.equal(reference, plain.embed(images).positions)


@pytest.mark.parametrize(("trainable", "is_rescaled"), [("all", True), ("heads", False)])
def test_all_blocks_share_one_draw_and_a_frozen_encoder_has_none(
    trainable: str, is_rescaled: bool
) -> None:
    vit, images = dinov3_in_training(), some_images(dtype=torch.float32)
    reference = vit.eval().embed(images).positions
    model = EoMT(encoder=vit, num_classes=5, num_queries=7, num_blocks=2)
    model.set_trainable(trainable)
    model.train()
    with mock.patch.object(vit, "block", wraps=vit.block) as block:
        model(images)
        given = [call.args[2] for call in block.call_args_list]
    assert len(given) == 3
    assert all(angles is given[0] for angles in given)
    assert torch.equal(given[0], reference) != is_rescaled


def test_weights_to_download_were_trained_with_the_mean_and_deviation_of_ours() -> None:
    nodes = [OmegaConf.load(path) for path in (asset_dir("conf") / "backbone").glob("dino*.yaml")]
    assert all(node.pretrained for node in nodes)
    for weights in (timm.get_pretrained_cfg(node.name) for node in nodes):
        assert (weights.mean, weights.std) == (IMAGENET_MEAN, IMAGENET_STD), weights

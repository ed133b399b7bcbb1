"""Weights from everywhere: layouts of names, kinds of files, what is refused, what is reported."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers_oracle import DINOV2, DINOV3, SIZE, SIZES, random_dinov3, random_eomt
from transformers_oracle import DINOV3_PLUS as GATED

from eomt_exp import runs
from eomt_exp.contracts import CheckpointError
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.models.eomt import EoMT
from eomt_exp.models.erfnet import ERFNet
from eomt_exp.weights import weight_files
from eomt_exp.weights.formats import (
    HF_EOMT,
    HF_EOMT_DINOV3,
    LIGHTNING,
    OFFICIAL,
    OFFICIAL_DINOV3,
    to_official,
)
from eomt_exp.weights.loading import load_checkpoint
from eomt_exp.weights.weight_files import read_weights, save_weights
from tests.command_line import SMALL, metrics_of, only_run, run
from tests.planted import tiny_vit

GIANT, VIT = "vit_giant_patch14_reg4_dinov2", "vit_tiny_patch16_224"
DEPTH = 3


def eomt(name: str = DINOV2, size: tuple[int, int] = (SIZE, SIZE), **changes) -> EoMT:
    """Small, and each call with other weights, LayerScale not small and norms around one."""
    mlp = {"mlp_ratio": 16 / 3} if name == GIANT else {}
    model = EoMT(
        encoder=tiny_vit(size, name=name, depth=DEPTH, **mlp),
        **{"num_classes": 5, "num_queries": 7, "num_blocks": 2} | changes,
    )
    return randomised(model)


def randomised(model):
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


def write(state: dict[str, Tensor], path: Path) -> Path:
    state = {name: value.clone().contiguous() for name, value in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def differing(state: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names in `state` whose tensors are not the same in `other`."""
    return [name for name, value in state.items() if not torch.equal(value, other[name])]


def same(one: EoMT, other: EoMT) -> bool:
    return not differing(one.state_dict(), other.state_dict())


def refused(model, where: Path, message: str, **options) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, where, **options)


def around_dinov3() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One model in the official code's own DINOv3 layout and in its usual one.

    In the former its names are outside, Hugging Face's inside, where blocks are registered twice.
    """
    theirs = hugging_face(DINOV3).state_dict()
    usual, layout = to_official(theirs)
    assert layout == HF_EOMT_DINOV3
    named = {k: v for k, v in usual.items() if not k.startswith("encoder.backbone.")}
    for name, value in theirs.items():
        for old, new in {"layers.": "layer.", "layernorm.": "norm.", "embeddings.": "patch_embed.",
                         "layers": "blocks"}.items():  # fmt: skip
            if name.startswith(old):
                named[f"encoder.backbone.{name.replace(old, new, 1)}"] = value
    return named, usual


def lightning(state: dict[str, Tensor], prefix: str = "network.") -> dict[str, Tensor]:
    named = {prefix + name: value for name, value in state.items()}
    return named | {"criterion.empty_weight": torch.ones(6)}


compiled_lightning = partial(lightning, prefix="network._orig_mod.")


@pytest.mark.parametrize(
    ("backbone", "convert", "layout", "suffix"),
    [
        (DINOV2, dict, OFFICIAL, ".bin"),
        (DINOV3, dict, OFFICIAL, ".safetensors"),
        (DINOV2, compiled_lightning, LIGHTNING, ".bin"),
    ],
)
def test_every_layout_returns_bit_equal(backbone, convert, layout, suffix, tmp_path) -> None:
    model, other = eomt(backbone), eomt(backbone)
    model.set_mask_probs([0.0, 0.25])
    path = write(convert(model.state_dict()), tmp_path / f"w{suffix}")
    assert not same(model, other)
    report = load_checkpoint(other, path)
    assert same(model, other)
    assert other._probs == [0.0, 0.25]  # read back from the file too
    assert (report.layout, report.fresh, report.unused, report.resampled) == (layout, (), (), ())
    assert layout in str(report)


def test_the_official_layout_around_dinov3_is_the_usual_one(tmp_path) -> None:
    model, other = eomt(DINOV3), eomt(DINOV3)
    named, usual = around_dinov3()
    load_checkpoint(model, write(usual, tmp_path / "usual.bin"))
    report = load_checkpoint(other, write(named, tmp_path / "around.bin"))
    assert same(model, other)
    assert (report.layout, report.fresh, report.unused) == (OFFICIAL_DINOV3, (), ())


@pytest.mark.parametrize(("value", "called"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_weights_that_are_not_finite_are_named(value: float, called: str, tmp_path) -> None:
    model = eomt()
    with torch.no_grad():
        model.class_head.bias[2] = value
    path = write(model.state_dict(), tmp_path / "w.safetensors")
    refused(eomt(), path, f"w.safetensors: the weights hold {called} in class_head.bias")


def hugging_face(kind: str):
    """A model of transformers with random weights."""
    if kind in (DINOV2, GIANT):
        return randomised(random_eomt(num_hidden_layers=DEPTH, use_swiglu_ffn=kind == GIANT))
    return randomised(random_dinov3(kind == GATED, num_hidden_layers=DEPTH))


@pytest.mark.parametrize("kind", [DINOV2, GIANT, DINOV3, GATED])
def test_every_name_of_transformers_is_used_and_means_the_same(kind: str, tmp_path) -> None:
    theirs, ours = hugging_face(kind).eval(), eomt(kind)
    theirs.attn_mask_probs.zero_()
    theirs.save_pretrained(tmp_path)
    report = load_checkpoint(ours, tmp_path)
    assert report.layout == (HF_EOMT if kind in (DINOV2, GIANT) else HF_EOMT_DINOV3)
    assert (report.fresh, report.unused) == ((), ())
    images = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        normed = (images - ours.encoder.pixel_mean) / ours.encoder.pixel_std
        wanted = theirs.double()(normed).class_queries_logits
        found = ours.double().eval()(images).class_logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def trunk(kind: str):
    """A backbone of transformers with random weights."""
    import transformers as t

    sizes = {**SIZES, "num_hidden_layers": DEPTH}
    if kind == "vit_small_patch14_dinov2":
        return randomised(t.Dinov2Model(t.Dinov2Config(**sizes))).eval()
    sizes["num_register_tokens"] = 4
    if kind == DINOV3:
        config = t.DINOv3ViTConfig(**sizes, intermediate_size=192, layer_norm_eps=1e-5)
        return randomised(t.DINOv3ViTModel(config)).eval()
    config = t.Dinov2WithRegistersConfig(**sizes, use_swiglu_ffn=kind == GIANT)
    return randomised(t.Dinov2WithRegistersModel(config)).eval()


@pytest.mark.parametrize("kind", [DINOV2, GIANT, "vit_small_patch14_dinov2", DINOV3])
@pytest.mark.parametrize("saved", [False, True])
def test_backbones_of_transformers_say_the_same_here(kind: str, saved: bool, tmp_path) -> None:
    theirs, ours = trunk(kind), eomt(kind)
    before = copy.deepcopy(ours.mask_head.state_dict())
    if saved:  # under older names than those in memory
        theirs.save_pretrained(tmp_path)
    else:
        write(theirs.state_dict(), tmp_path / "model.safetensors")
    report = load_checkpoint(ours, tmp_path)
    assert report.layout.startswith("backbone only")
    assert {"q.weight", "class_head.bias", "upscale.0.conv1.weight"} <= {*report.fresh}
    assert not [name for name in report.fresh if name.startswith("encoder.")]
    assert differing(before, ours.mask_head.state_dict()) == []
    images = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
    encoder = ours.encoder.double().eval()
    theirs = theirs.double()
    with torch.no_grad():
        wanted = theirs((images - encoder.pixel_mean) / encoder.pixel_std).last_hidden_state
        tokens, _, positions = encoder.embed(images)
        for index in range(DEPTH):
            tokens = encoder.block(index, tokens, positions, None)
        torch.testing.assert_close(encoder.norm(tokens), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [DINOV2, DINOV3])
def test_a_backbone_of_timm_leaves_the_rest_fresh(kind: str, tmp_path) -> None:
    vit, ours = eomt(kind).encoder.backbone.state_dict(), eomt(kind)
    state = vit | {"head.weight": torch.zeros(10, 48)}
    report = load_checkpoint(ours, write(state, tmp_path / "vit.pth"))
    assert differing(vit, ours.encoder.backbone.state_dict()) == []
    assert not [name for name in report.fresh if name.startswith("encoder.")]
    assert "fresh" in str(report)


def test_a_key_bias_that_no_model_can_hold_is_refused_and_not_dropped() -> None:
    state = trunk(DINOV3).state_dict()
    key_bias = "model.layer.1.attention.k_proj.bias"
    named, _ = to_official({**state, key_bias: torch.zeros(48)})
    assert "encoder.backbone.blocks.1.attn.qkv.weight" in named
    with pytest.raises(CheckpointError, match=r"block 1 has a key bias of up to 0\.5"):
        to_official({**state, key_bias: torch.full((48,), 0.5)})


def test_weights_in_several_files_are_one(tmp_path) -> None:
    model, other = eomt(), eomt()
    state = model.state_dict()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in {*places.values()}:
        write({k: v for k, v in state.items() if places[k] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    load_checkpoint(other, tmp_path)
    assert same(model, other)
    (tmp_path / "model-1.safetensors").unlink()
    refused(other, tmp_path, r"names model-1\.safetensors, which is not there")
    index.write_text(json.dumps({"weight_map": {"x": "../model-0.safetensors"}}))
    refused(other, tmp_path, "beside it")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path) -> None:
    proof = tmp_path / "it_ran"
    torch.save({"state_dict": eomt().state_dict(), "x": Evil(proof)}, tmp_path / "evil.ckpt")
    refused(eomt(), tmp_path / "evil.ckpt", r"asks for posix\.mkdir")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"q.weight": Evil(proof)}))
    refused(eomt(), tmp_path / "raw.bin", "asks for code to be run")
    (tmp_path / "named.safetensors").write_bytes((tmp_path / "evil.ckpt").read_bytes())
    refused(eomt(), tmp_path / "named.safetensors", "no whole safetensors")
    assert not proof.exists()
    pickle.loads((tmp_path / "raw.bin").read_bytes())  # it would have
    assert proof.exists()


def test_a_lightning_file_with_settings_says_how_to_convert_it(tmp_path) -> None:
    model, other = eomt(), eomt()
    path = tmp_path / "last.ckpt"
    content = {"state_dict": lightning(model.state_dict()), "epoch": 3}
    torch.save(content | {"hyper_parameters": Namespace(lr=1e-4)}, path)
    refused(other, path, r"asks for argparse\.Namespace.*weights_only=False")
    torch.save(content, path)
    assert load_checkpoint(other, path).layout == LIGHTNING
    assert same(model, other)


def test_broken_files_are_named(tmp_path) -> None:
    for suffix in (".safetensors", ".bin"):
        whole = write(eomt().state_dict(), tmp_path / f"whole{suffix}").read_bytes()
        for name, content in (("cut", whole[:3000]), ("empty", b""), ("text", b"not weights")):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            refused(eomt(), path, rf"{name}\{suffix} is no whole")
    torch.save(eomt().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    load_checkpoint(eomt(), tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", [1, 2], "holds no weights by name, but a list"),
        ("a.bin", {"q.weight": torch.zeros(1), "step": 3}, r"1 entries.*'step': int"),
        ("a.bin", {"x": torch.zeros(1)}, "none of the known layouts.*they begin with x"),
        ("a.txt", {}, r"must end in \.safetensors"),
    ],
)
def test_files_that_are_no_weights_are_refused(name, content, message, tmp_path) -> None:
    torch.save(content, tmp_path / name)
    refused(eomt(), tmp_path / name, rf"{name}.*{message}")


def test_missing_files_and_folders_are_named(tmp_path) -> None:
    refused(eomt(), tmp_path / "nowhere.bin", "no weights at .*nowhere")
    refused(eomt(), tmp_path, "holds no weights")


def test_another_number_of_classes_is_refused_or_left_fresh(tmp_path) -> None:
    path = write(eomt().state_dict(), tmp_path / "m.safetensors")
    other = eomt(num_classes=9)
    refused(other, path, r"6 class outputs, the model 10.*load_class_head=fa")
    head = other.class_head.weight.clone()
    report = load_checkpoint(other, path, load_class_head=False)
    assert torch.equal(other.class_head.weight, head)
    assert {*report.fresh} == {*report.unused} == {"class_head.weight", "class_head.bias"}


def test_other_sizes_say_what_to_type(tmp_path) -> None:
    path = write(eomt().state_dict(), tmp_path / "m.bin")
    refused(eomt(num_queries=9), path, r"\(7, 48\), .* \(9, 48\); type model\.num_queries=7")
    refused(eomt(num_blocks=3), path, r"type model\.num_blocks=2")
    refused(eomt(GIANT), path, r"of another model\. other shape: .*blocks\.0\.mlp")


def test_missing_and_unexpected_names_are_errors_unless_allowed(tmp_path) -> None:
    model, other = eomt(), eomt()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("upscale.1.conv")}
    path = write(state | {"extra": torch.ones(2)}, tmp_path / "m.safetensors")
    refused(other, path, r"missing: upscale\.1\.conv1.*unexpected: extra")
    report = load_checkpoint(other, path, strict=False)
    assert report.unused == ("extra",)
    assert report.fresh == tuple(k for k in model.state_dict() if k.startswith("upscale.1.conv"))
    assert torch.equal(other.q.weight, model.q.weight)
    refused(ERFNet(num_classes=2), path, "of another model", strict=False)  # nothing fits


@pytest.mark.parametrize("index", [0, 1])
def test_differences_are_added_to_the_backbone_alone(index: int, tmp_path) -> None:
    base, tuned = eomt(DINOV3), around_dinov3()
    start = copy.deepcopy(base.state_dict())
    deltas = [
        {k: v * 0.1 if k.startswith("encoder.backbone") else v for k, v in state.items()}
        for state in tuned
    ]
    path = write(deltas[index], tmp_path / "delta.bin")
    for strict in (True, False):
        refused(base, path, "Type delta_weights=true", strict=strict)
    assert differing(start, base.state_dict()) == []
    load_checkpoint(base, path, delta_weights=True)
    delta = deltas[1]
    inside = {k: start[k] + delta[k] for k in start if k.startswith("encoder.backbone")}
    assert differing(delta | inside, base.state_dict()) == []
    whole = write(tuned[index], tmp_path / "whole.bin")
    refused(base, whole, "Type delta_weights=false", delta_weights=True)


# 64 x 256: as many patches as a square of 128 has; 112 x 448: as many as timm's ViTs of 224 have.
@pytest.mark.parametrize("size", [(64, 256), (112, 448), (32, 96)])
def test_positions_of_no_square_return_as_they_were(size: tuple[int, int], tmp_path) -> None:
    model, other = eomt(VIT, size), eomt(VIT, size)
    path = write(model.state_dict(), tmp_path / "model.safetensors")
    report = load_checkpoint(other, path, trained_size=size)
    assert same(model, other)
    assert report.resampled == ()


def test_positions_are_resampled_from_the_rows_they_form(tmp_path) -> None:
    model = eomt(VIT, (64, 256))
    ramp = torch.arange(16.0).repeat(4, 1)  # grows to the right and nowhere else
    model.encoder.backbone.pos_embed.data[0, 1:] = ramp.flatten()[:, None]
    path = write(model.state_dict(), tmp_path / "model.safetensors")
    other = eomt(VIT, (128, 128))  # as many positions, in other rows
    report = load_checkpoint(other, path, trained_size=(64, 256))
    assert report.resampled == ("encoder.backbone.pos_embed",)
    places = other.encoder.backbone.pos_embed[0, 1:].unflatten(0, (8, 8))
    torch.testing.assert_close(places[0], places[-1])
    assert (places[:, 1:, 0] > places[:, :-1, 0]).all()
    flat = write(eomt(VIT, (48, 96)).state_dict(), tmp_path / "flat.safetensors")
    refused(other, flat, "18 positions are no square")
    square = write(eomt().state_dict(), tmp_path / "square.safetensors")
    other = eomt(size=(32, 96))
    assert load_checkpoint(other, square).resampled == ("encoder.backbone.pos_embed",)
    assert other.encoder.backbone.pos_embed.shape == (1, 2 * 6, 48)


def test_a_run_knows_the_rows_of_its_positions(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("data: {image_size: [64, 256]}")
    write(eomt().state_dict(), tmp_path / "model.safetensors")
    for where in (tmp_path, tmp_path / "model.safetensors"):
        assert runs.trained_size(where) == (64, 256)
    for where in ("hf://owner/name", tmp_path / "other.safetensors", tmp_path.parent):
        assert runs.trained_size(where) is None


def test_a_name_that_timm_would_pass_over_is_unexpected(tmp_path) -> None:
    for name, extra in ((VIT, "pre_logits.fc.weight"), (DINOV3, "blocks.0.rope_extra")):
        model = eomt(name)
        state = model.state_dict() | {f"encoder.backbone.{extra}": torch.zeros(2)}
        path = write(state, tmp_path / "extra.safetensors")
        refused(eomt(name), path, extra)
        assert load_checkpoint(eomt(name), path, strict=False).unused


def test_an_anomaly_head_is_saved_too_and_left_fresh_by_a_file_without(tmp_path) -> None:
    def with_head() -> EoMT:
        return eomt(anomaly_head=QueryHead(embed_dim=48, use_entropy=True, hidden_dim=16))

    model, other = with_head(), with_head()
    save_weights(model, tmp_path / "m.safetensors")
    assert load_checkpoint(other, tmp_path / "m.safetensors").fresh == ()
    assert same(model, other)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    save_weights(eomt(), tmp_path / "m.safetensors")
    fresh = load_checkpoint(other, tmp_path / "m.safetensors").fresh
    assert {name.partition(".")[0] for name in fresh} == {"anomaly_head"}


def test_outlier_class_joins_a_semantic_model_almost_unheard(tmp_path) -> None:
    torch.manual_seed(0)
    semantic, wider = eomt().eval(), eomt(outlier_class=True).eval()
    torch.nn.init.normal_(semantic.class_head.weight, std=0.05)
    save_weights(semantic, tmp_path / "m.safetensors")
    report = load_checkpoint(wider, tmp_path / "m.safetensors")
    assert report.fresh == ("class_head.weight[outlier]", "class_head.bias[outlier]")
    images = torch.rand(2, 3, SIZE, SIZE)
    before, after = semantic(images), wider(images)
    assert after.has_outlier_class
    assert not before.has_outlier_class
    torch.testing.assert_close(after.class_logits[..., :5], before.class_logits[..., :5])
    torch.testing.assert_close(after.class_logits[..., -1], before.class_logits[..., -1])
    assert torch.allclose(after.semantic_scores(), before.semantic_scores(), rtol=0.15)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Stands in for huggingface_hub with the files of tmp_path; keeps what was asked of it."""

    def snapshot(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        cache = tmp_path / f"cache_{revision}"
        cache.mkdir(exist_ok=True)
        for file in [file for one in allow_patterns for file in tmp_path.glob(one)]:
            shutil.copy(file, cache)
        return str(cache)

    def download(repo: str, name: str, revision: str | None) -> str:
        return str(shutil.copy(tmp_path / name, Path(snapshot(repo, revision, [])) / name))

    hub = mock.Mock()
    hub.hf_hub_download.side_effect, hub.snapshot_download.side_effect = download, snapshot
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))
    weight_files._downloaded.cache_clear()
    return hub


SAFE, PICKLED = (
    ["model.safetensors", weight_files.INDEX, "model-*.safetensors", "config.yaml", "metrics.json"],
    ["pytorch_model.bin", "config.yaml", "metrics.json"],
)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_hub_ids_are_fetched_and_pickles_only_where_there_is_nothing_else(
    hub: mock.Mock, tmp_path: Path, kind: str
) -> None:
    model = eomt()
    write(model.state_dict(), tmp_path / kind)
    if kind == "model.safetensors":
        write(eomt().state_dict(), tmp_path / "pytorch_model.bin")
    for where in ("hf://tue-mps/eomt", "hf://tue-mps/eomt@v1"):
        other = eomt()
        hub.reset_mock()
        load_checkpoint(other, where)
        assert same(model, other)
        asked = partial(mock.call.snapshot_download, "tue-mps/eomt")
        revision = "v1" if "@" in where else None
        assert hub.mock_calls == [
            asked(revision=revision, allow_patterns=patterns)
            for patterns in ([SAFE] if kind == "model.safetensors" else [SAFE, PICKLED])
        ]
    hub.reset_mock()
    path = weight_files.local_path(f"hf://tue-mps/eomt@v1/{kind}")
    assert path == tmp_path / "cache_v1" / kind
    assert hub.mock_calls == [mock.call.hf_hub_download("tue-mps/eomt", kind, revision="v1")]


def test_hub_ids_that_cannot_be_had_say_what_to_type(hub: mock.Mock, tmp_path: Path) -> None:
    for wrong in ("hf://eomt", "hf://a/b/code.py", "hf://a/b/../x.bin", "hf://a/b/x.ckpt"):
        with pytest.raises(CheckpointError, match="must be hf://owner/name"):
            read_weights(wrong)
    assert not hub.mock_calls
    with pytest.raises(CheckpointError, match=r"owner/empty has none of model\.safetensors"):
        read_weights("hf://owner/empty")
    hub.snapshot_download.side_effect = LocalEntryNotFoundError("no connection")
    with pytest.raises(CheckpointError, match=r"no connection.*type /path/to/file"):
        read_weights("hf://owner/name")


def test_a_backbone_takes_its_weights_from_the_hub(hub: mock.Mock, tmp_path: Path) -> None:
    vit = eomt().encoder.backbone.state_dict()
    write(vit, tmp_path / "model.safetensors")
    cfg = OmegaConf.create({"model": {
        "_target_": "eomt_exp.models.eomt.EoMT", "num_classes": 5,
        "encoder": {"_target_": "eomt_exp.backbones.timm_vit.TimmViT", "name": DINOV2,
                    "embed_dim": 48, "image_size": [SIZE, SIZE], "weights": "hf://timm/vit",
                    "overrides": {"embed_dim": 48, "depth": 3, "num_heads": 3}},
    }})  # fmt: skip
    assert differing(vit, runs.build_model(cfg).encoder.backbone.state_dict()) == []
    hub.reset_mock()
    weight_files._downloaded.cache_clear()
    runs.build_model(cfg, pretrained=False)
    assert not hub.mock_calls


def test_how_weights_are_loaded_does_not_name_a_semantic_model() -> None:
    def key(**settings) -> str:
        return runs.content_key(OmegaConf.create({"seed": 0} | settings))

    assert key() == key(strict=False, load_class_head=False, delta_weights=True)
    assert len({key(), key(seed=1), key(checkpoint="x")}) == 3  # the last began elsewhere


def test_an_unfinished_run_is_no_checkpoint(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(CheckpointError, match="is unfinished"):
        runs.weights_of(tmp_path)
    assert runs.weights_of("hf://owner/name") == "hf://owner/name"


COMMAND = (
    "task=evaluate", *SMALL, f"backbone.name={DINOV2}", "tracking=none", "scorer=[msp]",
    "score=msp", "benchmark=[synth_anomaly]",
)  # fmt: skip


def for_the_command(num_classes: int) -> EoMT:
    return eomt(size=(32, 64), num_classes=num_classes, num_queries=6, num_blocks=3)


@pytest.mark.slow
def test_published_weights_are_evaluated_by_a_command(outputs: Path, tmp_path, capfd) -> None:
    model = for_the_command(9)
    path = write(lightning(model.state_dict()), tmp_path / "published.safetensors")
    outcome = run(capfd, *COMMAND, f"checkpoint={path}")
    assert outcome.code == 0, outcome.err
    assert f"{path} ({LIGHTNING}): {len(model.state_dict())} tensors" in outcome.out
    assert "AUROC" in outcome.out
    (manifest,) = metrics_of(only_run(outputs, "evaluate"))["manifest"]["models"].values()
    assert manifest["weights"] == str(path)
    assert manifest["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_who_brings_the_backbones_weights(outputs: Path, tmp_path, capfd, monkeypatch) -> None:
    """The backbone's own weights are looked for unless a whole checkpoint comes instead."""
    asked: list[bool] = []

    def build_model(cfg: Any, pretrained: bool = True) -> Any:
        asked.append(pretrained)
        raise CheckpointError("seen")

    monkeypatch.setattr(runs, "build_model", build_model)
    path = write(for_the_command(9).state_dict(), tmp_path / "some.safetensors")
    overrides = ["+experiment=semantic", *COMMAND[1:]]
    for more, wanted in {
        ("checkpoint=",): True,  # an unset variable of a shell
        (f"checkpoint={path}",): False,
        (f"checkpoint={path}", "strict=false"): True,  # it may be what the file lacks
    }.items():
        assert run(capfd, *overrides, *more).code == 2
        assert asked.pop() is wanted, more


@pytest.mark.slow
def test_weights_that_would_make_no_sense_are_not_evaluated(outputs, tmp_path, capfd) -> None:
    model = for_the_command(9)
    vit = write(model.encoder.backbone.state_dict(), tmp_path / "vit.safetensors")
    whole = write(model.state_dict(), tmp_path / "whole.bin")
    for overrides, message in {
        (f"checkpoint={vit}",): "leaves 20 weights of this model random",
        (f"checkpoint={whole}", "delta_weights=true"): "type backbone.weights=/path/to/them",
        ("delta_weights=true",): "is for published weights",
    }.items():
        outcome = run(capfd, *COMMAND, *overrides)
        assert outcome.code == 2, outcome.out
        (line,) = (line for line in outcome.err.splitlines() if line.strip())
        assert line.startswith("error: ")
        assert message in line
    assert not list(outputs.glob("evaluate/*/metrics.json"))


@pytest.mark.slow
def test_training_goes_on_from_differences_to_published_backbones(
    outputs: Path, tmp_path, capfd
) -> None:
    base, tuned = eomt(size=(32, 64)).encoder, for_the_command(9)
    write(base.backbone.state_dict(), tmp_path / "base.safetensors")
    name = "encoder.backbone."
    delta = tuned.state_dict()
    for key in base.backbone.state_dict():
        delta[name + key] = 0.01 * delta[name + key]
    path = write(delta, tmp_path / "delta.bin")
    stands_still = ("optim.lr=0", "optim.weight_decay=0")
    outcome = run(capfd, "+experiment=semantic", *COMMAND[1:], f"checkpoint={path}",
                  f"backbone.weights={tmp_path}/base.safetensors", "delta_weights=true",
                  *stands_still)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f"{path} (official EoMT)" in outcome.out
    trained = load_file(only_run(outputs, "semantic") / weight_files.WEIGHTS)
    wanted = {name + k: v + delta[name + k] for k, v in base.backbone.state_dict().items()}
    assert differing(wanted | {"q.weight": delta["q.weight"]}, trained) == []

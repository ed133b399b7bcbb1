"""model=mask2former_…: it is transformers' network, reads its files, and trains like any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp import runs
from eomt_exp.backbones.pixel_encoder import IMAGENET_MEAN, IMAGENET_STD
from eomt_exp.contracts import CheckpointError, MaskOutput, UserError
from eomt_exp.models.mask2former import Mask2Former
from eomt_exp.weights.formats import HF_MASK2FORMER, HF_SWIN, to_official
from eomt_exp.weights.loading import load_checkpoint
from eomt_exp.weights.weight_files import save_weights
from tests.command_line import metrics_of, only_run, run
from tests.data_files import composed
from tests.test_checkpoints import differing, same
from tests.test_spatial_experiments import learns_by_heart, load

slow = pytest.mark.slow  # transformers alone takes seconds to import
CLASSES, QUERIES, SIZE = 5, 7, (64, 96)
SWIN: dict[str, Any] = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 3]}
# As words of a command.
TINY = (
    "model=mask2former_swin_t", "model.embed_dim=12", "model.depths=[1,1,2,1]",
    "model.num_heads=[1,2,2,3]", "model.hidden_dim=32", "model.pixel_decoder_layers=1",
    "model.decoder_layers=2", "model.num_queries=7",
)  # fmt: skip
FAST = (
    "debug=fast", "data.image_size=[32,64]", "recipe.num_points=64", "trainer.num_workers=0",
    "evaluator.bits=17", "evaluator.resamples=20", "evaluator.figures=0", "tracking=none",
    "benchmark=[synth_anomaly]",
)  # fmt: skip


def tiny(**changes: Any) -> Mask2Former:
    """Ours; drop_path is random in training, so that it is 0 here."""
    numbers = {
        "num_classes": CLASSES, "num_queries": QUERIES, "window_size": 4, "hidden_dim": 32,
        "pixel_decoder_layers": 1, "decoder_layers": 2, "drop_path": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return Mask2Former(**SWIN | numbers | changes)


def swin_config() -> Any:
    from transformers import SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    return SwinConfig(**SWIN, window_size=4, drop_path_rate=0.0, out_features=stages)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' model of the same sizes, none of whose weights is at its first value."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    torch.manual_seed(1)
    config = Mask2FormerConfig(
        backbone_config=swin_config(), num_labels=CLASSES, num_queries=QUERIES,
        feature_size=32, mask_feature_size=32, hidden_dim=32, num_attention_heads=8,
        encoder_layers=1, encoder_feedforward_dim=128, decoder_layers=3, dim_feedforward=256,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() == 1 or "relative_position" in name:
            nn.init.normal_(parameter, std=0.3)
        elif "queries" not in name:  # these differ enough from each other as they are
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes."""
    path = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(path)
    return path


def images(size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))


def outputs_of(theirs: Any) -> Any:
    """transformers' outputs for the images, which it wants normalised."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        return theirs((images() - mean) / std, output_auxiliary_logits=True)


def loaded(folder: Path, **changes: Any) -> Mask2Former:
    model = tiny(**changes).eval()
    load_checkpoint(model, folder)
    return model


@slow
def test_masks_and_classes_are_transformers_own(theirs: Any, folder: Path) -> None:
    expected, model = outputs_of(theirs), loaded(folder)
    with torch.no_grad():
        output = model(images())
    assert output.mask_logits.shape == (2, QUERIES, 16, 24)
    assert output.class_logits.shape == (2, QUERIES, CLASSES + 1)
    assert output.aux == ()
    for ours, other in (
        (output.mask_logits, expected.masks_queries_logits),
        (output.class_logits, expected.class_queries_logits),
    ):
        assert other.std() > 0.1, "a signal, so that the comparison says something"
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)
    # What the heads read is what the class head reads.
    again = model.class_head(output.queries)
    torch.testing.assert_close(again, output.class_logits, rtol=0, atol=1e-5)


@slow
def test_training_supervises_every_layer_in_order(theirs: Any, folder: Path) -> None:
    expected, model = outputs_of(theirs).auxiliary_logits, loaded(folder)
    with torch.no_grad():
        aux = model.train()(images()).aux
    assert len(aux) == len(expected) == 2
    for ours, other in zip(aux, expected, strict=True):
        for name in ("mask", "class"):
            logits = getattr(ours, f"{name}_logits")
            wanted = other["masks_queries_logits" if name == "mask" else "class_queries_logits"]
            torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(aux[0].class_logits, aux[1].class_logits, atol=0.1)


@slow
def test_semantic_scores_are_those_of_its_post_processing(theirs: Any, folder: Path) -> None:
    """It enlarges masks to 384 x 384 before the sigmoid, and the scores from there."""
    from transformers import Mask2FormerImageProcessor

    found = Mask2FormerImageProcessor().post_process_semantic_segmentation(
        outputs_of(theirs), target_sizes=[SIZE, SIZE], return_segmentation_scores=True
    )
    with torch.no_grad():
        scores = loaded(folder)(images()).resized((384, 384)).semantic_scores()
    scores = F.interpolate(scores, size=SIZE, mode="bilinear", align_corners=False)
    expected = torch.stack([one.segmentation_scores for one in found])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert torch.equal(scores.argmax(1), torch.stack([one.segmentation for one in found]))
    assert len(scores.argmax(1).unique()) > 1


@slow
@pytest.mark.parametrize("names", ["saved", "of its modules", "of version 4", "ours"])
def test_every_public_copy_loads_whole(
    names: str, theirs: Any, folder: Path, tmp_path: Path
) -> None:
    whole, path = loaded(folder), tmp_path / "copy.safetensors"
    saved = load_file(folder / "model.safetensors")
    swin = "model.pixel_level_module.encoder."
    if names == "of version 4":  # constants were in its files, and that norm was not
        saved = {name: value for name, value in saved.items() if ".swin." not in name}
        at = f"{swin}encoder.layers.0.blocks.0.attention.self.relative_position_index"
        saved |= {at: torch.zeros(16, 16), "criterion.empty_weight": torch.ones(CLASSES + 1)}
        save_file(saved, path)
    elif names == "of its modules":
        state = {k: v.contiguous() for k, v in theirs.state_dict().items()}
        assert f"{swin}swin.encoder.layers.0.blocks.0.attention.q_proj.weight" in state
        save_file(state, path)
    elif names == "ours":
        save_weights(whole, path)
    model = tiny(num_classes=CLASSES)
    assert not same(model, whole)
    report = load_checkpoint(model, folder if names == "saved" else path)
    assert (report.layout, report.fresh, report.unused) == (HF_MASK2FORMER, (), ())
    assert len(report.loaded) == len(model.state_dict())
    assert same(model, whole)


@slow
def test_what_does_not_fit_says_what_to_type(folder: Path) -> None:
    for changes, message in (
        ({"num_classes": 9}, "has 6 class outputs, the model 10 .*load_class_head=false"),
        ({"num_queries": 100}, "type model.num_queries=7"),
        ({"depths": [1, 1, 1, 1]}, "unexpected: encoder.swin.encoder.layers.2.blocks.1"),
        ({"embed_dim": 24}, "other shape: pixel_decoder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tiny(**changes), folder)
    with pytest.raises(CheckpointError, match="delta_weights=false"):
        load_checkpoint(tiny(), folder, delta_weights=True)
    report = load_checkpoint(tiny(num_classes=9), folder, load_class_head=False)
    assert {*report.fresh} == {*report.unused} == {"class_head.weight", "class_head.bias"}


@slow
def test_an_outlier_class_is_put_between_known_and_no_object(folder: Path) -> None:
    plain, wider = loaded(folder), tiny(outlier_class=True).eval()
    report = load_checkpoint(wider, folder)
    assert report.fresh == ("class_head.weight[outlier]", "class_head.bias[outlier]")
    with torch.no_grad():
        narrow, output = plain(images()), wider(images())
    assert output.has_outlier_class
    kept = output.class_logits[..., [*range(CLASSES), CLASSES + 1]]
    torch.testing.assert_close(kept, narrow.class_logits)
    assert output.semantic_scores().shape == (2, CLASSES, 16, 24)


@slow
def test_a_swin_of_imagenet_is_an_encoder_to_train_from(tmp_path: Path) -> None:
    from transformers import SwinForImageClassification

    torch.manual_seed(3)
    classifier = SwinForImageClassification(swin_config())
    classifier.save_pretrained(tmp_path)
    model, before = tiny(), tiny().state_dict()
    report = load_checkpoint(model, tmp_path)
    assert (report.layout, report.unused) == (HF_SWIN, ())
    state = model.encoder.state_dict()
    learnt = {k: v for k, v in classifier.state_dict().items() if k in state}
    assert len(learnt) == len(report.loaded) == len(state) - 2 * 4  # the norms of its four maps
    assert differing(learnt, state) == []
    assert differing({k: before[k] for k in report.fresh}, model.state_dict()) == []


@slow
@pytest.mark.parametrize(("option", "millions"), [("t", 47), ("s", 69), ("l", 215)])
def test_parameters_are_as_many_as_published(option: str, millions: int) -> None:
    with torch.device("meta"):
        cfg = load("data=cityscapes", f"model=mask2former_swin_{option}")
        model = runs.build_model(cfg, pretrained=False)
        output = model.eval()(torch.empty(1, 3, 64, 128))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert output.mask_logits.shape == (1, 100, 16, 32)


@slow
def test_it_trains_by_a_command_and_its_queries_are_read_by_a_head(outputs: Path, capfd) -> None:
    outcome = run(capfd, "+experiment=semantic", *TINY, *FAST)
    assert outcome.code == 0, outcome.err
    trained = only_run(outputs, "semantic")
    assert "synth_anomaly/msp/ap" in metrics_of(trained)["metrics"]
    outcome = run(capfd, "+experiment=query_only", *TINY, *FAST)
    assert outcome.code == 0, outcome.err
    followed = only_run(outputs, "query_only")
    assert "synth_anomaly/anomaly_head/ap" in metrics_of(followed)["metrics"]
    body, head = (load_file(path / "model.safetensors") for path in (trained, followed))
    assert differing(body, head) == []  # what is frozen stays
    assert {name.split(".")[0] for name in head.keys() - body.keys()} == {"anomaly_head"}


@slow
def test_a_saved_folder_is_evaluated_by_a_command(folder: Path, outputs: Path, capfd) -> None:
    words = ("task=evaluate", *TINY, "model.window_size=4", *FAST, f"checkpoint={folder}")
    outcome = run(capfd, *words, "data.num_classes=9")
    assert outcome.code == 2
    assert "has 6 class outputs, the model 10" in outcome.err
    outcome = run(capfd, *words, f"data.num_classes={CLASSES}", "evaluator.known_classes=false")
    assert outcome.code == 0, outcome.err
    assert "(Hugging Face Mask2Former)" in outcome.out
    metrics = metrics_of(only_run(outputs, "evaluate"))["metrics"]
    assert 0 < metrics["synth_anomaly/rba/ap"] < 1


@slow
def test_eight_roads_are_learnt_by_heart() -> None:
    wider = {"embed_dim": 24, "num_heads": [1, 2, 4, 4], "hidden_dim": 64}
    learns_by_heart(tiny(num_classes=9, num_queries=16, **wider), 64, 96)


@slow
def test_half_precision_trains() -> None:
    model = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images())
    assert isinstance(output, MaskOutput)
    total = sum(o.mask_logits.float().square().mean() for o in (output, *output.aux))
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_names_of_published_files_become_ours() -> None:
    """Without transformers: a list of what its conversion script wrote."""
    block = "model.pixel_level_module.encoder.encoder.layers.2.blocks.17"
    ours = "encoder.swin.encoder.layers.2.blocks.17"
    table = "relative_position_bias_table"
    names = {
        "model.transformer_module.queries_features.weight":
            "transformer_decoder.queries_features.weight",
        "model.transformer_module.decoder.layers.8.cross_attn.in_proj_weight":
            "transformer_decoder.decoder.layers.8.cross_attn.in_proj_weight",
        "model.pixel_level_module.decoder.encoder.layers.5.fc1.bias":
            "pixel_decoder.encoder.layers.5.fc1.bias",
        "model.pixel_level_module.encoder.hidden_states_norms.stage1.weight":
            "encoder.hidden_states_norms.stage1.weight",
        "model.pixel_level_module.encoder.embeddings.norm.bias":
            "encoder.swin.embeddings.norm.bias",
        f"{block}.attention.self.{table}": f"{ours}.attention.relative_position_bias.{table}",
        f"{block}.attention.self.key.bias": f"{ours}.attention.k_proj.bias",
        f"{block}.attention.output.dense.weight": f"{ours}.attention.o_proj.weight",
        f"{block}.intermediate.dense.weight": f"{ours}.mlp.fc1.weight",
        f"{block}.output.dense.weight": f"{ours}.mlp.fc2.weight",
        "class_predictor.bias": "class_head.bias",
    }  # fmt: skip
    outside = (f"{block}.attention.self.relative_position_index", "criterion.empty_weight")
    state, layout = to_official({name: torch.zeros(1) for name in (*names, *outside)})
    assert layout == HF_MASK2FORMER
    assert list(state) == list(names.values())
    assert list(to_official(state)[0]) == list(state)  # ours stay


def test_swin_l_has_the_published_sizes_and_heads_its_width() -> None:
    node = composed("model=mask2former_swin_l", "anomaly_head=query_only").model
    swin = (node.embed_dim, node.depths, node.num_heads, node.window_size)
    assert swin == (192, [2, 2, 18, 2], [6, 12, 24, 48], 12)
    shared = (node.num_queries, node.hidden_dim, node.pixel_decoder_layers, node.decoder_layers)
    assert shared == (100, 256, 6, 9)
    assert node.anomaly_head.embed_dim == node.hidden_dim


def test_what_is_no_model_is_refused_before_transformers_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(UserError, match=r'is not installed: type pip install -e "\.\[mask2former'):
        tiny()
    for changes, message in (
        ({"depths": [2, 2, 2]}, "each of the 4 stages"),
        ({"num_heads": [1, 2, 2, 5]}, r"must divide the widths \[12, 24, 48, 96\]"),
        ({"hidden_dim": 48}, "multiple of 32, got 48"),
    ):
        with pytest.raises(UserError, match=message):
            tiny(**changes)
    runs.build_model(load("data.image_size=[32,64]"))  # EoMT does without


@slow
def test_sides_that_it_would_pad_are_refused() -> None:
    with pytest.raises(UserError, match=r"32 divides, got 40 x 64; type data.image_size=\[32,64\]"):
        tiny()(images((40, 64)))

"""task=export: graphs agree with the detector, public layouts with the models that read them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers_oracle import DINOV2, random_eomt, translated

import eomt_exp
from eomt_exp.backbones.scalable_vit import ScalableViT
from eomt_exp.contracts import CheckpointError, Model, UserError
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.score_graph import ScoreGraph, loaded
from eomt_exp.heads.isomax_plus import IsoMaxPlus
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.models.eomt import EoMT
from eomt_exp.models.erfnet import ERFNet
from eomt_exp.models.spatial_eomt import SpatialEoMT
from eomt_exp.scorers.class_margin import ClassMargin
from eomt_exp.scorers.max_logit import MaxLogit
from eomt_exp.scorers.rba import RbA
from eomt_exp.weights import weight_files
from eomt_exp.weights.hugging_face import from_eomt, to_eomt
from eomt_exp.weights.loading import load_checkpoint
from eomt_exp.weights.publishing import write_hugging_face, write_official
from tests.command_line import SMALL, only_run, run
from tests.planted import tiny_vit

SIDE, CLASSES, QUERIES = 64, 5, 7
CLASS_TOKEN = "vit_tiny_patch16_224"  # whose positions are of the class token too
slow = pytest.mark.slow


def eomt(name: str = DINOV2, size: tuple[int, int] = (SIDE, SIDE), **parts) -> EoMT:
    torch.manual_seed(0)
    model = EoMT(
        encoder=tiny_vit(size, name=name), num_classes=CLASSES, num_queries=QUERIES, num_blocks=2,
        masked_attention=False, **parts,
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim > 1:  # else attention is all but uniform, and masks are shut
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return model.eval()


def detector_of(model: Model, size: tuple[int, int], score: str = "rba", windows: bool = True):
    scorers = {"max_logit": MaxLogit(), "rba": RbA(), "class_margin": ClassMargin()}
    return Detector(
        model=model.eval(), scorers={score: scorers[score]}, score=score, image_size=size,
        windows=windows,
    )  # fmt: skip


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Squares of colours, which resizing keeps apart from noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("score", ["rba", "class_margin"])
def test_the_graph_takes_the_steps_of_the_detector(windows: bool, score: str) -> None:
    detector = detector_of(eomt(outlier_class=True), (SIDE, SIDE), score, windows)
    image = picture(50, 170)
    scores, known = detector.scores(image)
    with torch.no_grad():
        found, classes = detector.graph(torch.from_numpy(image.copy()))
    np.testing.assert_allclose(found.numpy(), scores[score], atol=1e-5)
    assert (classes.numpy() == known).mean() > 0.999


def test_transformers_names_are_ours_and_back() -> None:
    pytest.importorskip("transformers")
    theirs = random_eomt().state_dict()
    ours = translated(theirs)
    back = to_eomt(ours)
    assert {k for k in theirs if not k.startswith("criterion.")} == back.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in back)
    again = from_eomt(back)
    assert ours.keys() == again.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


@slow
@pytest.mark.parametrize("name", [DINOV2, CLASS_TOKEN])
def test_transformers_and_we_load_what_is_written_for_it(name: str, tmp_path: Path) -> None:
    from transformers import EomtForUniversalSegmentation

    model = eomt(name, outlier_class=True)
    write_hugging_face(model, SIDE, [*"abcde", "outlier"], tmp_path)
    theirs, loading = EomtForUniversalSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.rand(2, 3, SIDE, SIDE)
    encoder = model.encoder
    with torch.no_grad():
        found = theirs.eval()((images - encoder.pixel_mean) / encoder.pixel_std)
        ours = model(images)
    torch.testing.assert_close(found.masks_queries_logits, ours.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.class_queries_logits, ours.class_logits, atol=1e-4, rtol=1e-4)
    other = eomt(name, outlier_class=True)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    load_checkpoint(other, tmp_path, trained_size=(SIDE, SIDE))
    with torch.no_grad():
        again = other(images)
    torch.testing.assert_close(again.mask_logits, ours.mask_logits, atol=1e-5, rtol=1e-5)


def test_the_official_layout_comes_back_to_the_bit(tmp_path: Path) -> None:
    model, other = eomt(), eomt()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    write_official(model, tmp_path)
    load_checkpoint(other, tmp_path)
    for name, value in model.state_dict().items():
        if name != "attn_mask_probs":  # all 0: the model does without masked attention
            assert torch.equal(value, other.state_dict()[name]), name
    assert not other.attn_mask_probs.any()


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    refused = {
        "anomaly head": eomt(anomaly_head=QueryHead(embed_dim=48)),
        "holds distances": eomt(class_head=IsoMaxPlus(embed_dim=48, num_classes=CLASSES)),
        "is no EoMT": ERFNet(num_classes=CLASSES),
        "no plain ViT": spatial_eomt(),
    }
    for message, model in refused.items():
        with pytest.raises(UserError, match=message):
            write_official(model, tmp_path)
    refused = {
        "no place for dist_token": eomt("deit_tiny_distilled_patch16_224"),
        "learned positions": eomt("vit_base_patch16_clip_224"),  # its patches have no bias
    }
    for message, model in refused.items():
        with pytest.raises(CheckpointError, match=message):
            write_hugging_face(model, SIDE, [*"abcde"], tmp_path)
    with pytest.raises(CheckpointError, match="learned positions"):
        to_eomt(eomt("vit_small_patch16_dinov3_qkvb").state_dict())


def scalable_vit() -> ScalableViT:
    pytest.importorskip("vit_pytorch")
    return ScalableViT(
        image_size=(SIDE, 2 * SIDE), embed_dim=32, depth=[1, 2, 3], heads=[1, 1, 2],
        reduction=[4, 2, 1], window=[4, 4, 2], head_dim=8, expansion=2,
    )  # fmt: skip


def spatial_eomt() -> SpatialEoMT:
    return SpatialEoMT(encoder=scalable_vit(), num_classes=CLASSES, num_queries=4, head_dim=8)


def models() -> dict[str, Model]:
    return {
        "eomt": eomt(size=(SIDE, 2 * SIDE)),
        "class_token": eomt(CLASS_TOKEN, size=(SIDE, 2 * SIDE)),
        "spatial_eomt": spatial_eomt(),
        "erfnet": ERFNet(num_classes=CLASSES),
    }


@slow
@pytest.mark.parametrize("name", ["eomt", "class_token", "spatial_eomt", "erfnet"])
@pytest.mark.parametrize("size", [None, (50, 170)])
def test_onnx_agrees_with_the_detector(name: str, size, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    score = "max_logit" if name == "erfnet" else "rba"
    detector = detector_of(models()[name], (SIDE, 2 * SIDE), score, windows=size is not None)
    ScoreGraph(detector, size, half=False).save(tmp_path / "model.onnx", "onnx")
    run_graph = loaded(tmp_path / "model.onnx")
    equal = []
    for height, width in [size] if size else [(50, 170), (96, 96), (130, 240)]:
        for seed in range(3):
            image = picture(height, width, seed)
            scores, known = detector.scores(image)
            found, classes = run_graph(image)
            np.testing.assert_allclose(found, scores[score], atol=1e-4)
            equal.append((classes == known).mean())
    assert np.mean(equal) >= 0.9999


@slow
def test_the_command_writes_a_graph_that_runs_without_us(
    capfd, outputs: Path, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("onnxruntime")
    outcome = run(capfd, "+experiment=semantic", *SMALL, "score=rba")
    assert outcome.code == 0, outcome.err
    folder = only_run(outputs, "semantic")
    typed = ("task=export", f"checkpoint={folder}", "task.images=3")
    outcome = run(capfd, *typed, f"hydra.run.dir={tmp_path}/onnx")
    assert outcome.code == 0, outcome.err
    facts = json.loads((tmp_path / "onnx/facts.json").read_text())
    assert facts["checked"]["difference"] < 1e-4
    assert facts["threshold"] == eomt_exp.load_detector(folder).threshold
    Image.fromarray(picture(60, 80)).save(tmp_path / "street.png")
    # The packages that the README beside the graph names, and no others.
    subprocess.run([sys.executable, "-m", "venv", f"{tmp_path}/clean"], check=True)
    python = next((tmp_path / "clean").glob("*/python"))
    wanted = re.search(r"pip install ([^`]*)", (tmp_path / "onnx/README.md").read_text())[1].split()
    assert {*wanted} == {"onnxruntime", "numpy", "pillow"}
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    alone = {**os.environ, "PYTHONPATH": ""}
    command = [python, "onnx/infer.py", "street.png"]
    subprocess.run(command, cwd=tmp_path, env=alone, check=True)
    detector = eomt_exp.load_detector(folder)
    detector.detector.windows = False
    np.testing.assert_allclose(
        np.load(tmp_path / "street_score.npy"), detector(tmp_path / "street.png"), atol=1e-4
    )
    outcome = run(capfd, *typed, "task.tolerance=1e-12", f"hydra.run.dir={tmp_path}/strict")
    assert outcome.code == 2
    assert "is not the detector" in outcome.err
    assert not (tmp_path / "strict/model.onnx").exists()
    outcome = run(capfd, *typed, "task.format=hugging_face", f"hydra.run.dir={tmp_path}/hf")
    assert outcome.code == 0, outcome.err
    written = eomt_exp.load_detector(tmp_path / "hf")
    assert written.threshold == detector.threshold
    monkeypatch.setattr(weight_files, "_downloaded", lambda _: tmp_path / "hf")
    assert eomt_exp.load_detector("hf://owner/name").class_names == written.class_names
    assert written.class_names == detector.class_names
    assert str(outputs) not in (tmp_path / "hf/config.yaml").read_text()
    # Of a run that is measured on larger images, a graph takes these, and transformers its squares.
    for kind in ("onnx", "hugging_face"):
        larger = (f"task.format={kind}", "protocol.image_size=[64,128]")
        outcome = run(capfd, *typed, *larger, f"hydra.run.dir={tmp_path}/larger_{kind}")
        assert outcome.code == 0, outcome.err
    assert "64 x 128 pixels" in (tmp_path / "larger_onnx/README.md").read_text()
    again = eomt_exp.load_detector(tmp_path / "larger_hugging_face")
    assert again.image_size == written.image_size

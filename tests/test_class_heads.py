"""The class heads: what trains them, what is read off them, and how one begins as another.

A new file in conf/class_head is tested unasked.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import yaml
from hydra import compose
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from eomt_exp import runs
from eomt_exp.contracts import CheckpointError
from eomt_exp.engine.optim import make_optimizer
from eomt_exp.heads.isomax_plus import IsoMaxPlus
from eomt_exp.heads.logit_norm import LogitNorm
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.models.eomt import EoMT
from eomt_exp.scorers.min_distance import MinDistance
from eomt_exp.tasks.start import semantic_config
from eomt_exp.weights.loading import load_checkpoint
from tests import test_freezing
from tests.command_line import SMALL, only_run, run
from tests.test_model import SIZE, tiny

FILES = sorted((Path(__file__).parents[1] / "conf" / "class_head").glob("*.yaml"))
HEADS = {p.stem: node for p in FILES if (node := yaml.safe_load(p.read_text()))["_target_"]}
each_head = pytest.mark.parametrize("name", HEADS)


def configured(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"embed_dim": planted.D, "num_classes": planted.K}
    return planted.part_of(HEADS[name] | sizes | changes)


def isomax_plus(**changes: Any) -> IsoMaxPlus:
    head = configured("isomax_plus", **changes)
    head.distance_scale.data.fill_(-1.5)  # its sign does not count
    return head


def some_queries(seed: int = 1) -> Tensor:
    noise = torch.randn(
        planted.B, planted.Q, planted.D, generator=torch.Generator().manual_seed(seed)
    )
    return noise.requires_grad_()


@each_head
@pytest.mark.parametrize("outlier_class", [False, True])
def test_a_head_has_a_logit_for_every_class_and_all_of_it_learns(name: str, outlier_class: bool):
    head = configured(name, outlier_class=outlier_class)
    logits = head(some_queries())
    assert logits.shape == (planted.B, planted.Q, planted.K + 1 + outlier_class)
    truth = torch.arange(planted.B * planted.Q) % logits.shape[-1]
    F.cross_entropy(logits.flatten(0, 1), truth).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


@each_head
@pytest.mark.parametrize("training", [False, True])
def test_a_head_agrees_with_itself_in_half_precision(name: str, training: bool):
    head = configured(name).train(training)
    wide = head(some_queries())
    half = head.bfloat16()(some_queries().bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wide, rtol=0.02, atol=0.02 * wide.abs().max().item())


def by_hand(head: IsoMaxPlus, queries: Tensor) -> Tensor:
    """D of the paper, one number at a time."""

    def unit(vector: Tensor) -> list[float]:
        length = math.sqrt(sum(x * x for x in vector.tolist()))
        return [x / length for x in vector.tolist()]

    scale = abs(head.distance_scale.item())
    return torch.tensor(
        [
            [[scale * math.dist(unit(q), unit(p)) for p in head.prototypes] for q in image]
            for image in queries
        ]
    )


def test_the_distance_is_between_directions_of_single_queries():
    head, queries = isomax_plus(), some_queries()
    torch.testing.assert_close(head.distances(queries), by_hand(head, queries))
    longer = queries * torch.rand(planted.B, planted.Q, 1).add(0.5)
    torch.testing.assert_close(head.distances(longer), head.distances(queries))


def test_the_entropic_scale_is_for_training_alone():
    head, queries = isomax_plus(entropic_scale=8.0, inference_scale=2.0), some_queries()
    distances = by_hand(head, queries)
    torch.testing.assert_close(head.train()(queries), -8.0 * distances)
    torch.testing.assert_close(head.eval()(queries), -2.0 * distances)


def test_a_query_on_its_prototype_has_a_finite_gradient():
    head = isomax_plus()
    queries = (3.0 * head.prototypes.detach())[None].requires_grad_()
    head(queries).sum().backward()
    assert queries.grad.isfinite().all()
    assert head.prototypes.grad.isfinite().all()


def linear_rows(norm: float = 0.3) -> Tensor:
    torch.manual_seed(5)
    return norm * F.normalize(torch.randn(planted.K + 1, planted.D), dim=1)


def test_a_linear_head_turned_into_prototypes_says_the_same_classes():
    head, rows = isomax_plus(), linear_rows()
    head.load_state_dict(head.from_linear(rows))
    queries = F.layer_norm(some_queries(), (planted.D,))
    before, after = queries @ rows.T, head.train()(queries)
    assert torch.equal(before.argsort(dim=-1), after.argsort(dim=-1))
    # As far apart as they were: a query along a row, and one at a right angle to all of them.
    along, across = rows[2] / 0.3, torch.linalg.svd(rows).Vh[-1]
    along, across = (math.sqrt(planted.D) * one[None, None] for one in (along, across))
    apart = (along - across) @ rows.T, head(along) - head(across)
    torch.testing.assert_close(apart[0][..., 2], apart[1][..., 2], atol=2e-3, rtol=0.0)


def test_logit_norm_trains_the_direction_alone():
    head = configured("logit_norm", embed_dim=planted.K + 1, tau=0.5)
    torch.nn.init.eye_(head.weight)
    torch.nn.init.zeros_(head.bias)  # the queries are the logits z
    z = torch.randn(3, planted.K + 1).requires_grad_()
    truth = torch.tensor([0, 2, 4])
    assert torch.equal(head.eval()(z), z)
    F.cross_entropy(head.train()(z[None])[0], truth, reduction="sum").backward()
    length, unit = z.norm(dim=1, keepdim=True), F.normalize(z, dim=1)
    wrong = (unit / 0.5).softmax(dim=1) - F.one_hot(truth, planted.K + 1)
    across = wrong - (wrong * unit).sum(dim=1, keepdim=True) * unit
    torch.testing.assert_close(z.grad, across / (0.5 * length))  # the closed form


def eomt(**changes: Any) -> EoMT:
    outlier_class = changes.get("outlier_class", False)
    head = IsoMaxPlus(embed_dim=48, num_classes=5, outlier_class=outlier_class, inference_scale=2.0)
    return tiny(class_head=head, **changes)


def pictures() -> Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_the_score_follows_the_prototypes() -> None:
    model = eomt().eval()
    with torch.no_grad():
        before = model(pictures())
        # Class 3 moves to where query 2 of image 0 is: their distance becomes 0.
        model.class_head.prototypes[3] = 2.0 * before.queries[0, 2]
        after = model(pictures())
    for output in (before, after):
        assert output.distances is not None
        near = (-output.distances[..., :5].amin(dim=-1)).exp()  # not of no-object
        carried = [output.mask_logits[:, q].sigmoid() * near[:, q, None, None] for q in range(7)]
        expected = -torch.stack(carried).amax(dim=0)
        torch.testing.assert_close(MinDistance()(output), expected)
    torch.testing.assert_close(after.distances, by_hand(model.class_head, after.queries))
    assert after.distances[0, 2, 3] < 1e-3
    assert (MinDistance()(after)[0] <= -after.mask_logits[0, 2].sigmoid() + 1e-3).all()
    assert not torch.allclose(MinDistance()(after), MinDistance()(before))


def test_idle_queries_hide_no_anomaly_and_raise_no_road() -> None:
    output = planted.planted_output(outlier_class=True, with_head=True)
    plain = MinDistance()(output)
    covering = output.mask_logits.clone()
    covering[:, 2:] = planted.SURE  # four queries that are near nothing, over everything
    left, right = planted.halves(MinDistance()(output._replace(mask_logits=covering)))
    assert right.min() > left.max()
    torch.testing.assert_close(left, planted.halves(plain)[0])


def test_a_frozen_head_is_read_as_at_inference() -> None:
    model = eomt()
    sure = model.train()(pictures()).class_logits
    for parameter in model.class_head.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(
        model.train()(pictures()).class_logits,
        sure * (model.class_head.inference_scale / model.class_head.entropic_scale),
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_step_in_bfloat16_is_finite(name: str) -> None:
    head = configured(name, embed_dim=48, num_classes=5)
    model = tiny(class_head=head).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pictures())
    terms = MaskClassification(num_points=64)(output, [test_freezing.a_target()] * 2)
    sum(terms.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def linear_file(folder: Path) -> Path:
    torch.manual_seed(3)
    model = tiny()
    torch.nn.init.normal_(model.class_head.weight, std=0.2)
    save_file(model.state_dict(), folder / "linear.safetensors")
    return folder / "linear.safetensors"


def test_a_linear_checkpoint_begins_as_prototypes(tmp_path: Path) -> None:
    path = linear_file(tmp_path)
    rows = load_file(path)["class_head.weight"]
    model, wider = eomt(), eomt(outlier_class=True)
    own = wider.class_head.prototypes[5].clone()
    report = load_checkpoint(model, path)
    assert {*report.fresh} == {"class_head.prototypes", "class_head.distance_scale"}
    assert {*report.unused} == {"class_head.weight", "class_head.bias"}
    cosines = F.cosine_similarity(model.class_head.prototypes, rows, dim=1)
    torch.testing.assert_close(cosines, torch.ones(6))
    report = load_checkpoint(wider, path)
    assert "class_head.prototypes[outlier]" in report.fresh
    kept = wider.class_head.prototypes
    torch.testing.assert_close(kept[[0, 1, 2, 3, 4, 6]], model.class_head.prototypes)
    assert torch.equal(kept[5], own)
    fresh = eomt()
    before = fresh.class_head.prototypes.clone()
    assert "class_head.prototypes" in load_checkpoint(fresh, path, load_class_head=False).fresh
    assert torch.equal(fresh.class_head.prototypes, before)


def test_a_checkpoint_with_prototypes_loads_whole_and_fits_no_other_head(tmp_path: Path) -> None:
    model, other = eomt(), eomt()
    torch.nn.init.normal_(model.class_head.prototypes)
    path = tmp_path / "m.safetensors"
    save_file(model.state_dict(), path)
    report = load_checkpoint(other, path)
    assert report.fresh == report.unused == ()
    assert torch.equal(other.class_head.prototypes, model.class_head.prototypes)
    with pytest.raises(
        CheckpointError, match=r"unexpected: class_head.*prototypes.* class_head and"
    ):
        load_checkpoint(tiny(), path)
    more = tiny(num_classes=9, class_head=IsoMaxPlus(embed_dim=48, num_classes=9))
    with pytest.raises(CheckpointError, match=r"6 class outputs, the model 10.*load_class_head=fa"):
        load_checkpoint(more, path)


def test_logit_norm_has_the_weights_of_a_linear_head(tmp_path: Path) -> None:
    path = linear_file(tmp_path)
    model, linear = tiny(class_head=LogitNorm(embed_dim=48, num_classes=5)), tiny()
    assert load_checkpoint(model, path).fresh == load_checkpoint(linear, path).fresh == ()
    seen, expected = (one.eval()(pictures()).class_logits for one in (model, linear))
    torch.testing.assert_close(seen, expected)


def test_a_run_from_before_there_were_class_heads_goes_on(
    tmp_path: Path, hydra_at_conf: None
) -> None:
    cfg = compose("config", overrides=["hydra.run.dir=unused", *SMALL])
    old = runs.plain(cfg)
    del old["class_head"], old["model"]["class_head"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(old)))
    stored = runs.load_config(tmp_path)
    assert runs.content_key(stored) == runs.content_key(cfg)
    names = {*runs.build_model(stored, pretrained=False).state_dict()}
    assert {"class_head.weight", "class_head.bias"} <= names
    runs.begin(cfg, tmp_path)  # UserError, were it other settings


def test_what_is_typed_reaches_the_head_and_not_the_semantic_model(hydra_at_conf: None) -> None:
    words = ("+experiment=outlier_exposure", "class_head=isomax_plus", *SMALL)
    cfg = compose("config", overrides=["hydra.run.dir=unused", *words])
    semantic = semantic_config(cfg)
    assert runs.plain(semantic)["model"]["class_head"] == {"_target_": None}
    # 9 classes, pasted objects, no-object.
    assert runs.build_model(cfg, pretrained=False).class_head.prototypes.shape == (11, 48)


def test_the_optimiser_holds_and_moves_prototypes_and_scale() -> None:
    model = eomt().train()
    began = {name: value.clone() for name, value in model.class_head.state_dict().items()}
    optimizer = make_optimizer(model, test_freezing.optim())
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    terms = MaskClassification(num_points=64)(model(pictures()), [test_freezing.a_target()] * 2)
    sum(terms.values()).backward()
    optimizer.step()
    for name, value in model.class_head.state_dict().items():
        assert (value - began[name]).abs().reshape(len(value), -1).amax(dim=1).min() > 1e-4, name


@pytest.mark.slow
def test_training_moves_prototypes_away_from_the_linear_head_they_began_as(
    outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = (*SMALL, "tracking=none", "benchmark=none")
    outcome = run(capfd, "+experiment=isomax_plus", *small)
    assert outcome.code == 0, outcome.err
    assert "fresh (2): class_head.prototypes, class_head.distance_scale" in outcome.out
    linear = load_file(only_run(outputs, "semantic") / "model.safetensors")
    trained = load_file(only_run(outputs, "isomax_plus") / "model.safetensors")
    head = IsoMaxPlus(embed_dim=48, num_classes=9)
    for name, began in head.from_linear(linear["class_head.weight"]).items():
        moved = (trained[f"class_head.{name}"] - began).abs().reshape(len(began), -1).amax(dim=1)
        assert (moved > 1e-4).all(), name  # every prototype, and the scale

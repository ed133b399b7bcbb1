"""model=spatial_eomt in the experiments: it builds everywhere, is as large as EoMT, and learns."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from eomt_exp import cli, runs
from eomt_exp.build import build_all
from eomt_exp.contracts import VOID, Model, Target
from eomt_exp.data.synthetic_roads import SyntheticRoads
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.models.spatial_eomt import SpatialEoMT
from eomt_exp.paths import asset_dir
from tests.test_scalable_vit import images_of

CONF = asset_dir("conf")
CHOSEN = ("model=spatial_eomt", "backbone=scalable_vit")
SMALL = ("data.image_size=[32,64]", "backbone.embed_dim=32", "backbone.head_dim=8",
         "backbone.heads=[1,1,2]", "model.head_dim=8", "recipe.num_queries=6")  # fmt: skip
SCORERS = "scorer=[msp,max_logit,entropy,energy,rba,outlier_class,uno,anomaly_head]"


def load(*overrides: str) -> DictConfig:
    cli.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["hydra.run.dir=unused", *overrides])


def test_every_head_and_scorer_takes_its_output() -> None:
    cfg = load("+experiment=eim_oe", *CHOSEN, *SMALL, SCORERS)
    scorers = build_all(cfg.scorer, "scorer")
    for path in (CONF / "anomaly_head").glob("*.yaml"):
        cfg.anomaly_head = OmegaConf.load(path)
        model = runs.build_model(cfg, pretrained=False).eval()
        assert isinstance(model, SpatialEoMT)
        output = model(images_of())
        assert (output.anomaly_logits is None) == (path.stem == "none")
        for name, scorer in scorers.items():
            if path.stem != "none" or name != "anomaly_head":
                score = scorer(output)
                assert (score.shape, bool(score.isfinite().all())) == ((2, 8, 16), True), name


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_builds_with_it(experiment: str) -> None:
    cfg = load(f"+experiment={experiment}", *CHOSEN, *SMALL)
    model = runs.build_model(cfg, pretrained=False)
    model.set_trainable(cfg.trainable.value)
    losses = build_all(cfg.loss, "loss")
    outlier = torch.zeros(32, 64, dtype=torch.uint8)
    target = Target(torch.ones(1, 32, 64) > 0, torch.tensor([0]), outlier, outlier > 0)
    output = model.train()(images_of())
    terms = {k: v for loss in losses.values() for k, v in loss(output, [target] * 2).items()}
    assert terms
    assert all(term.isfinite() for term in terms.values())


def scenes(number: int, height: int, width: int) -> tuple[torch.Tensor, list[Target]]:
    roads = SyntheticRoads(split="train", length=number, height=height, width=width, seed=0)
    pictures, targets = [], []
    for index in range(number):
        scene = roads[index]
        labels = torch.from_numpy(scene.labels.copy()).long()
        known = labels.unique()[labels.unique() != VOID]
        masks = labels == known[:, None, None]
        targets.append(Target(masks, known, torch.zeros_like(labels), labels == VOID))
        pictures.append(torch.from_numpy(scene.image.copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(pictures), targets


def learns_by_heart(model: Model, height: int, width: int) -> None:
    """Trains it on eight roads for sixty steps; it must know them then."""
    model.train()
    images, targets = scenes(8, height, width)
    loss = MaskClassification(num_points=512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    totals = []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 10)
        total = sum(loss(model(images), targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    with torch.no_grad():
        seen = model.eval()(images).resized((height, width)).semantic_scores().argmax(dim=1)
    truth = torch.stack([(t.labels[:, None, None] * t.masks).sum(dim=0) for t in targets])
    kept = ~torch.stack([t.ignore for t in targets])
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])
    assert (seen == truth)[kept].float().mean() > 0.75


@pytest.mark.slow
def test_eight_roads_are_learnt_by_heart() -> None:
    torch.manual_seed(0)
    cfg = load(*CHOSEN, "backbone.embed_dim=96", "data.image_size=[48,96]",
               "recipe.num_queries=16")  # fmt: skip
    learns_by_heart(runs.build_model(cfg, pretrained=False), 48, 96)

"""Numbers that cannot be are refused by their key before training, and dead overrides are named."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from eomt_exp import cli, runs, schema
from eomt_exp.build import build
from eomt_exp.config_keys import READ
from eomt_exp.contracts import UserError
from eomt_exp.paths import asset_dir
from eomt_exp.ranges import Count, Positive, Range, Share, fault, range_of
from eomt_exp.tasks.start import tell_without_effect

NEVER = (float("nan"), float("inf"), 1e30)
Place = tuple[str | int, ...]  # of a number in a configuration
PARTS = ("loss", "scorer", "benchmark", "tuning", "mining")  # groups of several
IN_OTHERS = ("backbone", "class_head", "anomaly_head", "outliers")  # in model and in data
OBJECTS = {
    "optim": schema.OptimConfig,
    "trainer": schema.TrainerConfig,
    "evaluator": schema.EvaluatorConfig,
}
WIDE = (
    "+experiment=eim_oe", "benchmark@tuning=pasted_validation", "class_head=logit_norm",
    "anomaly_head=uncertainty", "backbone=simple_vit", "optim.mask_annealing=[[0.1,0.3],[0.2,0.6]]",
    "trainer.images_per_epoch=9", "recipe.tuning_images=9",
    "loss=[mask_classification,anomaly_head,isotropy_penalty,outlier_margin,relative_margin,"
    "entropy_maximisation,energy_margin]",
)  # fmt: skip

# What may be 0, and what may be negative; all other numbers must be more.
ZERO = (
    "seed", "*.seed", "*.road_classes.0", "recipe.lr", "recipe.exposure_lr", "recipe.head_lr",
    "*backbone_lr_factor", "*layer_decay", "*paste_probability", "*validate_every",
    "*anomaly_head.dropout", "optim.lr", "optim.weight_decay", "optim.*_warmup",
    "optim.poly_power", "optim.mask_annealing.*.0", "trainer.num_workers", "evaluator.figures",
    "evaluator.resamples", "evaluator.scratch_gb", "*.empty_fraction", "augmentation.flip",
    "augmentation.brightness", "augmentation.contrast", "augmentation.saturation",
    "augmentation.hue", "augmentation.blur", "augmentation.noise", "outlier_exposure.min_support",
    "outlier_exposure.feather", "outlier_exposure.colour_match", "outlier_exposure.rotation",
    "outlier_exposure.brightness", "outlier_exposure.copy_probability", "*.assemblies",
    "loss.*weight", "loss.*cost", "loss.*margin", "loss.*.tolerance",
    "loss.*.high", "loss.*.importance_ratio",
)  # fmt: skip
NEGATIVE = ("loss.*_margin.low", "loss.relative_margin.*margin", "loss.relative_margin.tolerance")


def leaves(node: Any, at: Place = ()) -> Iterator[tuple[Place, float]]:
    """The numbers of a plain configuration."""
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*at, key))
    elif type(node) in (int, float):
        yield at, node


def with_value(node: Any, at: Place, value: float) -> Any:
    """The same with another number in one place; what is beside it is shared."""
    if not at:
        return value
    changed = copy.copy(node)
    changed[at[0]] = with_value(node[at[0]], at[1:], value)
    return changed


def refusal(plain: dict[str, Any], at: Place, value: float) -> str:
    """What a training would say before it begins; "" where it would begin."""
    group: Any = at[0]
    node = with_value(plain, at, value)[group]
    try:
        schema.check_numbers({group: node}, schema.Config)
        if group in OBJECTS:
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OBJECTS[group]), node))
        elif group in PARTS:
            build(node[at[1]], f"{group}.{at[1]}")
        elif group == "data" and len(at) > 2 and isinstance(node[at[1]], dict):
            build(node[at[1]], f"data.{at[1]}")
        elif isinstance(node, dict) and "_target_" in node:
            with torch.device("meta"):
                build(node, group)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """A configuration with as many parts as fit together."""
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        return runs.plain(compose("config", overrides=["hydra.run.dir=unused", *WIDE]))


def test_each_number_is_accepted_with_a_meaning_or_refused_by_its_key(
    plain: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It lists what it tried: pytest -s."""
    numbers = [(at, old) for at, old in leaves(plain) if at[0] not in IN_OTHERS]
    tried = [(at, type(old)(value)) for at, old in numbers for value in (0, -1)]
    tried += [(at, value) for at, _ in numbers for value in NEVER]
    accepted: dict[float, set[str]] = {0: set(), -1: set()}
    for at, value in tried:
        key = ".".join(map(str, at))
        found = refusal(plain, at, value)
        print(f"{key}={value}: {found or 'accepted'}")
        if found:
            name = next(one for one in reversed(at) if isinstance(one, str))
            assert name in found, (key, value)
            assert "\n" not in found
        else:
            accepted[value].add(key)  # a KeyError is a NaN, an infinity, or more than anything
    capsys.readouterr()
    wrong = {key for key in accepted[0] if not any(fnmatch(key, one) for one in ZERO)}
    assert wrong == set()
    assert [one for one in ZERO if not any(fnmatch(key, one) for key in accepted[0])] == []
    assert {key for key in accepted[-1] if not any(fnmatch(key, one) for one in NEGATIVE)} == set()


def test_a_share_is_at_most_1_and_numbers_of_one_list_fit_together(plain: dict[str, Any]) -> None:
    def said(key: str, value: Any) -> str:
        return refusal(plain, tuple(key.split(".")), value)

    exposure = "outlier_exposure.copy_probability must be from 0 to 1, got 2.0."
    assert said("outlier_exposure.copy_probability", 2.0) == exposure
    assert said("augmentation.hue", 0.6) == "augmentation.hue must be from 0 to 0.5, got 0.6."
    assert said("recipe.crop_scale", [0.5]) == "recipe.crop_scale must hold 2 numbers, got [0.5]."
    assert "scale must be [lowest, highest]" in said("augmentation.scale", [2.0, 1.0])
    assert said("outliers.size", 7) == "outliers.size must be at least 8, got 7."


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("backbone=mini",), ("backbone=vit",), ("model=spatial_eomt", "backbone=scalable_vit"),
        ("model=mask2former_swin_t",), ("model=erfnet",), ("backbone=dinov2_small",),
    ],
)  # fmt: skip
def test_no_number_of_a_model_is_a_traceback(overrides: tuple[str, ...]) -> None:
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        cfg = compose("config", overrides=["hydra.run.dir=unused", *overrides])
    plain = runs.plain(cfg)
    for at, old in leaves({"model": plain["model"]}):
        for value in (type(old)(0), type(old)(-1), *NEVER):
            found = refusal(plain, at, value)
            if "overrides" not in at:  # timm's own keys
                assert found or value == 0, (at, value)


@pytest.mark.parametrize(
    ("hint", "wrong", "right"),
    [
        (Count, [0, -1, float("nan")], [1, 2**32 - 1]),
        (Positive | None, [0, 0.0, -1e-9, float("inf")], [1e-9, None]),
        (Share, [-0.1, 1.1], [0, 1, True, "half"]),
        (Annotated[list[int], Range(1, length=2)], [[1], [1, 0], [1, 2, 3]], [[1, 2]]),
        (Annotated[float, Range(0, 1, is_open=True)], [0, 1], [0.5]),
        (float, [float("nan"), 1e30, [0.0, float("inf")]], [-1.0, 2**32 - 1]),
    ],
)
def test_a_type_says_which_numbers_there_are(hint: Any, wrong: list, right: list) -> None:
    assert all(fault(one, range_of(hint)) for one in wrong)
    assert not any(fault(one, range_of(hint)) for one in right)


@pytest.mark.parametrize(
    ("typed", "without"),
    [
        ("+experiment=semantic recipe.lr=1 recipe.exposure_lr=1 debug=fast seed=1 strict=false",
         "recipe.exposure_lr strict"),
        ("+experiment=eim_oe recipe.semantic_epochs=2 data.outliers.size=9 fusion.space=raw"
         " benchmark=[pasted_validation] benchmark@mining=synth_anomaly",
         "fusion.space mining"),
        ("task=doctor optim.lr=1 backbone=mini data=camvid benchmark=[synth_anomaly]"
         " evaluator.synthetic_images=2", "backbone optim.lr"),
        ("task=describe recipe.num_queries=3 class_head=logit_norm recipe.lr=1", "recipe.lr"),
        ("task=preview +experiment=eim_oe task.images=2 recipe.crop_scale=[1,2] tracking=none"
         " loss=[mask_classification]", "loss"),
        ("task=evaluate checkpoint=x.pth data.image_size=[32,32] recipe.num_queries=2"
         " trainer.precision=bf16 benchmark@tuning=synth_anomaly", "trainer.precision tuning"),
        ("task=evaluate ensemble=[a,b] benchmark@tuning=synth_anomaly fusion.weights=fit", ""),
        ("task=evaluate checkpoint={run} data.image_size=[32,32] backbone=mini seed=1 score=msp",
         "backbone data.image_size seed"),
    ],
)  # fmt: skip
def test_what_is_typed_without_effect_is_named(
    hydra_at_conf: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys, typed: str,
    without: str,
) -> None:  # fmt: skip
    (tmp_path / "config.yaml").touch()  # enough of a run
    words = typed.format(run=tmp_path).split()
    hydra = OmegaConf.create({"overrides": {"task": words}})
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: hydra))
    tell_without_effect(compose("config", overrides=["hydra.run.dir=unused", *words]))
    said = capsys.readouterr().out.partition("typed without effect on task=")[2]
    assert said.partition(": ")[2].rstrip(".\n").partition(";")[0] == ", ".join(without.split())
    assert ("a run keeps its own" in said) == bool("{run}" in typed and without)


def test_each_task_says_what_it_reads() -> None:
    tasks = {path.stem for path in (asset_dir("conf") / "task").glob("*.yaml")}
    assert tasks == set(READ)

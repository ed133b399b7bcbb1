"""Every option of conf/ composes and builds; what a user mistypes is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from eomt_exp import cli, runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import UserError
from eomt_exp.paths import asset_dir
from tests.command_line import SMALL
from tests.planted import mined_folder

CONF = asset_dir("conf")


@pytest.fixture(autouse=True, scope="module")
def hydra_at_conf() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def load(*overrides: str):
    return compose("config", overrides=["hydra.run.dir=unused", *overrides])


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiments_compose_and_build(experiment: str, tmp_path: Path) -> None:
    small = [one for one in SMALL if "backbone" not in one]
    cfg = load(f"+experiment={experiment}", *small)
    if "backbone.needs_weights" in _keys(cfg):
        cfg.backbone.needs_weights = None
    assert cfg.name == experiment
    assert f"+experiment={experiment}" in (CONF / f"experiment/{experiment}.yaml").read_text()
    model = runs.build_model(cfg, pretrained=False)
    model.set_trainable(cfg.trainable.value)
    assert build_all(cfg.loss, "loss")
    if "maskomaly" in cfg.scorer:  # what is mined on a model comes after it
        cfg.scorer.maskomaly.mined = mined_folder(tmp_path, num_queries=model.num_queries)
    scorers = build_all(cfg.scorer, "scorer")
    assert cfg.score in scorers
    for scorer in scorers.values():
        scorer(_output(cfg, model))


def _output(cfg, model):
    import torch

    return model.eval()(torch.rand(1, 3, *cfg.data.image_size))


def _keys(cfg) -> set[str]:
    return {f"{k}.{k2}" for k, v in cfg.items() if OmegaConf.is_dict(v) for k2 in v}


SINGLE = ("class_head", "anomaly_head", "augmentation", "data", "optim", "outlier_exposure",
          "outliers", "recipe", "tracking", "trainer", "evaluator", "paths", "task",
          "model")  # fmt: skip


@pytest.mark.parametrize("group", SINGLE)
def test_every_option_composes_and_what_is_a_part_builds(group: str) -> None:
    for option in options(group):
        node = runs.plain(load(f"{group}={option}"))[group]
        if group in ("class_head", "anomaly_head", "augmentation", "outlier_exposure"):
            part = build(node, group)
            is_none = option in ("none", "linear") and group != "augmentation"
            assert (part is None) == is_none
        if group == "data":  # its folders are not here: what it says of itself is
            assert {"train", "val", "outliers", "val_outliers"} <= node.keys()
            assert len(node["image_size"]) == 2


@pytest.mark.slow
def test_every_benchmark_composes_and_can_be_tuned_on() -> None:
    for benchmark in options("benchmark"):
        cfg = load(f"benchmark=[{benchmark}]", f"benchmark@tuning=[{benchmark}]")
        assert all("_target_" in node for node in cfg.benchmark.values())
        assert cfg.benchmark == {} or benchmark != "none"
        assert runs.plain(cfg)["tuning"] == runs.plain(cfg)["benchmark"]


# What a backbone cannot do without: its model, or the two keys that are the user's to give.
NEEDS = {
    "scalable_vit": ("model=spatial_eomt",),
    "timm": ("backbone.name=deit_small_patch16_224", "backbone.embed_dim=384"),
}
LARGE = ("dinov2_", "dinov3_", "timm")  # up to a billion parameters: no memory is spent on them


def _with_backbone(backbone: str):
    return load(f"backbone={backbone}", "data.image_size=[32,64]", *NEEDS.get(backbone, ()))


@pytest.mark.parametrize("backbone", options("backbone"))
def test_backbones_build_and_run_on_the_meta_device(backbone: str) -> None:
    import torch

    cfg = _with_backbone(backbone)
    with torch.device("meta"):
        model = runs.build_model(cfg, pretrained=False)
        output = _output(cfg, model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert output.mask_logits.shape == (1, 24, 8, 16)
    assert output.class_logits.shape == (1, 24, cfg.data.num_classes + 1)


@pytest.mark.parametrize("backbone", [b for b in options("backbone") if not b.startswith(LARGE)])
def test_small_backbones_run(backbone: str) -> None:
    cfg = _with_backbone(backbone)
    output = _output(cfg, runs.build_model(cfg, pretrained=False))
    assert output.mask_logits.shape == (1, 24, 8, 16)
    assert output.mask_logits.isfinite().all()
    assert output.mask_logits.std() > 0


@pytest.mark.parametrize("group", ["scorer", "loss", "benchmark"])
def test_members_of_merged_groups_carry_their_own_name(group: str) -> None:
    for member in options(group):
        node = OmegaConf.load(CONF / group / f"{member}.yaml")
        if member != "none" and "defaults" not in node:  # a bundle
            assert list(node) == [member]
            assert node[member]["_target_"].startswith("eomt_exp.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("protocol.curve=spline", "protocol.curve must be exact or tool, got 'spline'"),
        ("protocol.curve=tool", "add protocol.scores=float16"),
        ("optim.head_warmup=0.99", "add up"),
        ("optim.mask_annealing=[[0,3000],[0.5,3000]]", "both steps"),
        ("optim.mask_annealing=[[0.8,0.2]]", "start first"),
        ("optim.mask_annealing=[3000]", "one \\[start, end\\] for each block"),
        ("trainer.device=tpu", "auto, cpu or cuda"),
    ],
)
def test_numbers_out_of_range_are_named(override: str, message: str) -> None:
    cfg = load(override)
    with pytest.raises(ValueError, match=message):
        OmegaConf.to_object(cfg[override.split(".")[0]])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "lrr"),
        ("trainer.epochs=abc", "trainer.epochs"),
        ("trainer.precision=bf61", "bf16"),
        ("trainer.batch_size=2.5", "2.5"),
        ("trainable=everything", "last_blocks"),
        ("recipe.semantic_epoch=1", "semantic_epoch"),
        ("data.image_siz=[1,2]", "image_siz"),
    ],
)
def test_a_wrong_key_or_type_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        load(override)
    assert message in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("benchmark", ["synth_anomaly", "road_anomaly", "none"])
def test_debug_fast_leaves_the_choice_of_benchmarks_alone(benchmark: str) -> None:
    found = load("debug=fast", f"benchmark={benchmark}").benchmark
    assert set(found) == {benchmark} - {"none"}
    assert all(node.get("length", 6) == 6 for node in found.values())


def test_an_unknown_option_lists_the_others() -> None:
    with pytest.raises(MissingConfigException, match="deit_tiny"):
        load("backbone=tinny")


def test_a_typo_inside_an_experiment_file_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\noptim:\n  lrr: 1\n"
    )
    with pytest.raises(ConfigCompositionException, match=r"experiment/mine") as caught:
        load("+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")
    assert "lrr" in str(caught.value.__cause__) + str(caught.value)


def test_only_classes_of_our_parts_are_called() -> None:
    with pytest.raises(UserError, match=r"x\.part\._target_ is 'os.system'"):
        build({"part": {"_target_": "os.system", "command": "true"}}, "x")
    for target in (
        "eomt_exp_evil.thing",
        "eomt_exp.tracking.provenance._git",  # a function that starts a process
        "eomt_exp.files.write_text",
        "eomt_exp.data.files.decode.decode_image",  # no class
        "eomt_exp.data.camvid.Path",  # a class, but not that module's
        "eomt_exp.scorers.msp.torch.load",
        "eomt_exp.scorers.msp.NoSuchThing",
        "optuna.storages.JournalStorage",  # of Optuna only samplers and pruners
    ):
        with pytest.raises(UserError, match=r"_target_|cannot be found|only classes in"):
            build({"_target_": target, "path": "/tmp/x"}, "x")


MSP = "eomt_exp.scorers.msp.MSP"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"_args_": [1]}, "_args_"),
        ({"_partial_": True}, "_partial_"),
        ({"_recursive_": False}, "_recursive_"),
        ({"temperature": "hot"}, r"scorer\.msp\.temperature must be float, got 'hot'"),
        ({"temperatur": 1.0}, r"scorer\.msp\.temperatur is no key.*temperature"),
        ({"temperature": -1.0}, "temperature"),  # an error of the part itself
    ],
)
def test_wrong_arguments_of_a_part_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({"_target_": MSP, **arguments}, "scorer.msp")


def test_a_choice_that_is_none_of_the_constructors_is_named() -> None:
    node = {"_target_": "eomt_exp.losses.isotropy_penalty.IsotropyPenalty", "queries": "matched"}
    with pytest.raises(UserError, match=r"loss\.x\.queries must be one of all, .*got 'matched'"):
        build(node, "loss.x")


def test_a_null_target_is_none_and_a_misspelt_member_is_named() -> None:
    assert build({"_target_": None, "adds_class": False}, "x") is None
    nodes = OmegaConf.create({"msp": {"_target_": MSP}, "mps": {"x": 1}})
    with pytest.raises(UserError, match=r"scorer\.mps is no part.*There are msp"):
        build_all(nodes, "scorer")


def test_the_content_key_is_about_weights_only() -> None:
    key = runs.content_key(load("+experiment=semantic"))
    same = ("tracking=none", "name=other", "evaluator.figures=1", "trainer.num_workers=0",
            "benchmark=[synth_anomaly]", "score=msp", "paths.outputs=/elsewhere",
            "recipe.exposure_lr=1", "data.outliers.length=3", "data.val.length=3")  # fmt: skip
    other = ("seed=1", "backbone.embed_dim=96", "data.train.length=5", "optim.lr=1", "recipe.lr=1")
    assert runs.content_key(load("+experiment=semantic", *same)) == key
    keys = [runs.content_key(load("+experiment=semantic", one)) for one in other]
    assert key not in keys
    assert len(set(keys)) == len(other) - 1  # optim.lr follows recipe.lr: those two agree

"""Each configuration key has one role, and what runs and studies are found by follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from typing import Any, get_type_hints

import pytest
from hydra import compose
from omegaconf import OmegaConf

from eomt_exp import config_keys, runs
from eomt_exp.config_keys import ROLES, Role, of_roles, role_of
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.schema import Config
from eomt_exp.tasks.start import semantic_config


def without_a_role(config: type, listed: Any = ROLES, above: str = "") -> Iterator[str]:
    """Keys of a schema that are not listed; a group stands for its keys unless one is listed."""
    hints = get_type_hints(config)
    for field in fields(config):
        key, kind = f"{above}{field.name}", hints[field.name]
        if is_dataclass(kind) and (key not in listed or f"{key}." in " ".join(listed)):
            yield from without_a_role(kind, listed, f"{key}.")  # type: ignore[arg-type]
        elif key not in listed:
            yield key


def test_every_key_of_the_schema_has_a_role() -> None:
    assert list(without_a_role(Config)) == []


def test_a_new_key_without_a_role_is_found() -> None:
    @dataclass
    class Wider(Config):
        teacher: str = ""

    assert list(without_a_role(Wider)) == ["teacher"]
    fewer = {key: role for key, role in ROLES.items() if key != "data.train"}
    assert list(without_a_role(Config, fewer)) == ["data.train"]
    fewer = {key: role for key, role in ROLES.items() if not key.startswith("optim")}
    assert "optim.lr" in list(without_a_role(Config, fewer))


def test_no_list_names_a_key_that_is_gone(hydra_at_conf: None) -> None:
    groups = {"hydra", "sweep", "experiment", "debug"}  # of which a job's configuration has no key
    lists = (
        *(config_keys.NEUTRAL, config_keys.OF_ALL_STAGES, config_keys.OF_A_STUDY),
        *(config_keys.OF_A_RUN, config_keys.OF_A_RUN_UNLESS_TYPED, ROLES),
        *config_keys.READ.values(),
    )
    cfg = compose("config")
    for key in {key for keys in lists for key in keys} - groups:
        group, _, name = key.rpartition(".")
        if group == "outlier_exposure":  # whose keys its class has
            assert name in signature(CutPaste).parameters
        else:
            assert name in set(OmegaConf.select(cfg, group) if group else cfg), key


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("optim.lr", Role.weights), ("model.encoder.patch_size", Role.weights),
        ("data.val.root", Role.judging), ("data.train.root", Role.weights),
        ("benchmark@tuning", Role.reporting), ("hydra/launcher", Role.place),
        ("evaluator.windows", Role.reading), ("data.of_another_day", Role.weights),
        ("paths.cityscapes", Role.place), ("never_heard_of", Role.weights),
    ],
)  # fmt: skip
def test_a_key_has_the_role_of_the_nearest_that_is_listed(key: str, role: Role) -> None:
    assert role_of(key) is role


def test_the_parts_of_a_configuration_together_are_the_whole() -> None:
    whole = {
        "seed": 1, "optim": {"lr": 2}, "tuning": {}, "evaluator": {"bits": 3, "verify": True},
        "data": {"train": {"a": 1}, "val": None, "cache": True}, "benchmark": {"x": {"bits": 4}},
    }  # fmt: skip
    assert of_roles(whole, *Role) == whole
    assert of_roles(whole, Role.judging) == {
        "tuning": {}, "data": {"val": None}, "evaluator": {"bits": 3},
    }  # fmt: skip
    assert of_roles(whole, Role.reporting) == {"benchmark": {"x": {"bits": 4}}}


# Of the method and of its semantic EoMT: with another key, finished runs would not be found again.
# The method's follows the defaults of eim_oe; the other is as before there were roles.
STORED = {
    "seed=0": ("27ddbe47a356", "09a80176ee0a"),
    "seed=3": ("240ff6de365f", "fb03da6ea5ea"),
    "checkpoint=/x/y": ("f5eb4bb0f2d0", "09a80176ee0a"),
    "trainer.images_per_epoch=9": ("fb85ac3c1a8f", "09a80176ee0a"),
    "backbone=dinov2_small": ("7c365df806af", "5ab16668d35e"),
    "data.image_size=[64,64]": ("e5724ccf8b3e", "eeef8e80ec6c"),
}


@pytest.mark.parametrize("override", STORED)
def test_finished_runs_are_found_again(override: str, hydra_at_conf: None) -> None:
    cfg = compose("config", overrides=["hydra.run.dir=unused", "+experiment=eim_oe", override])
    assert (runs.content_key(cfg), runs.content_key(semantic_config(cfg))) == STORED[override]


def test_a_key_that_is_younger_than_a_run_is_as_if_it_were_not_there() -> None:
    def key(**trainer: Any) -> str:
        return runs.content_key(OmegaConf.create({"trainer": {"epochs": 3} | trainer}))

    assert key(images_per_epoch=None) == key() != key(images_per_epoch=5)

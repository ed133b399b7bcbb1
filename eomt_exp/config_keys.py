"""Gives each configuration key its role, once; what may differ, is shared or left out follows.

The content key of a run, what a resumed run may change, what a semantic EoMT shares with the method
that begins with it, the facts of a study, the winner's file and the numbers that are measured again
all ask here. A key stands for all below it; where the keys of a group differ, each is listed, and
the group says what a key is that this program does not know (of an older run).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum
from typing import Any


class Role(Enum):
    """Says what a key is for."""

    weights = "decides the weights that a training comes to"
    loading = "says how the weights it begins with are loaded; without checkpoint= it is nothing"
    naming = "names a run, which must keep it, but two runs may differ in it and be equal"
    copied = "counts through the keys that refer to it alone"
    judging = "decides the numbers of the validation, by which settings are chosen"
    reporting = "decides which numbers, pictures and states are kept, and not the weights"
    reading = "says how images are read and checked; no weight and no number depends on it"
    place = "says where things lie on this machine, and how the command is run"


ROLES = {
    key: role
    for role, keys in {
        Role.weights: (
            *("seed", "start_from", "known", "trainable", "backbone", "model", "class_head"),
            *("anomaly_head", "augmentation", "outlier_exposure", "loss", "optim"),
            *("data", "data.name", "data.num_classes", "data.image_size", "data.road_classes"),
            *("data.on_broken", "data.limit", "data.train"),
            *("trainer", "trainer.epochs", "trainer.images_per_epoch", "trainer.batch_size"),
            *("trainer.accumulate", "trainer.precision", "trainer.device", "trainer.compile"),
            *("trainer.clip_grad_norm", "trainer.parallel", "trainer.ema"),
        ),
        Role.loading: ("checkpoint", "strict", "load_class_head", "delta_weights"),
        Role.naming: ("name",),
        Role.copied: ("recipe", "outliers", "data.outliers", "data.val_outliers"),
        # The validation may stop a training, but not change it.
        Role.judging: ("tuning", "data.val", "protocol", "evaluator.bits"),
        Role.reporting: (
            "trainer.on_bad_loss",  # where it matters, there are no weights with the other choice
            *("score", "scorer", "benchmark", "mining", "ensemble", "fusion", "threshold"),
            *("trainer.validate_every", "trainer.log_every", "trainer.save_every"),
            *("trainer.keep_checkpoints", "trainer.keep_best"),
            *(
                "evaluator.resamples",
                "evaluator.operating_fpr",
            ),
            *("evaluator.figures", "evaluator.exports", "evaluator.synthetic_images"),
        ),
        Role.reading: (
            *("data.cache", "trainer.num_workers", "evaluator"),
            # Recomputed blocks are the same blocks; a trace and a check change nothing.
            *("trainer.gradient_checkpointing", "trainer.detect_anomaly", "trainer.profile_steps"),
            *("evaluator.batch_size", "evaluator.scratch_gb", "evaluator.verify"),
            *("evaluator.known_classes", "evaluator.allow_seen_images"),
        ),
        Role.place: (
            *("paths", "tracking", "resume", "task", "tuned_on", "input"),
            *("hydra", "sweep", "experiment"),  # groups, of which the job's configuration has none
        ),
    }.items()
    for key in keys
}
SETTINGS = (Role.weights, Role.loading, Role.naming)  # what a run keeps when it is resumed
# Keys younger than the runs that lack them, with the values that are as if there were none.
NEUTRAL: dict[str, Any] = {
    **{"trainer.images_per_epoch": None, "known": None, "trainer.parallel": None},
    **{"trainer.ema": None, "data.limit": None, "loss.mask_classification.class_weights": None},
    **{"protocol.curve": "exact", "protocol.image_size": None},
    **{key: {"_target_": None} for key in ("class_head", "model.class_head")},
    **{"outlier_exposure.shifted_copy": "none", "outlier_exposure.copy_probability": 1.0},
}
# What a semantic EoMT shares with whatever begins with it; the rest is its own experiment's.
OF_ALL_STAGES = (
    *("seed", "data", "recipe", "backbone", "model", "augmentation", "paths"),
    *("protocol", "evaluator", "benchmark"),
    *("tracking.enabled", "tracking.uri", "tracking.artifacts"),
    *("trainer.device", "trainer.precision", "trainer.num_workers", "trainer.parallel"),
    "trainer.gradient_checkpointing",
)
# The winner of a study has these of its experiment, unless something else was typed.
OF_A_STUDY = (
    *("tuning", "benchmark", "evaluator", "debug"),
    *("trainer.epochs", "trainer.images_per_epoch", "trainer.validate_every"),
)
# task=evaluate takes these of the run it evaluates, the second line where nothing else was typed.
OF_A_RUN = ("model", "backbone", "seed")
OF_A_RUN_UNLESS_TYPED = ("scorer", "score", "benchmark")

OF_LOADING = ("strict", "load_class_head", "delta_weights")  # of weights that are no run's
OF_AN_ENSEMBLE = ("ensemble", "fusion", "tuning")
# What each task reads, besides what that refers to.
_OF_A_MODEL = (
    *("name", "seed", "checkpoint", "start_from", *OF_LOADING, "model", "known", "mining"),
    *("data.val", "data.image_size", "data.num_classes", "data.road_classes", "data.name"),
    *("protocol", "evaluator", "trainer.device", "trainer.num_workers"),
)
READ = {
    "train": (
        *(key for key, role in ROLES.items() if role not in (Role.copied, Role.reporting)),
        *("score", "scorer", "benchmark"),
    ),
    "evaluate": (*_OF_A_MODEL, *OF_AN_ENSEMBLE, "scorer", "score", "benchmark"),
    "analyse_queries": _OF_A_MODEL,
    "demo": (*_OF_A_MODEL, "scorer", "score"),
    "export": (*_OF_A_MODEL, "scorer", "score"),
    "predict": (*_OF_A_MODEL, "scorer", "score", "threshold"),
    "doctor": ("data", "benchmark"),
    "preview": ("data", "outlier_exposure", "augmentation", "name", "seed"),
    "describe": ("model", "data.image_size", "data.name", "trainable"),
}

# Beginnings of overrides. All processes of a job but the first get these two besides; with or
# without them, and whether it resumes or not, it is the same command.
RANK_OVERRIDES = ("hydra.output_subdir=null", "hydra/job_logging=none")
OF_A_TRY = ("resume=", *RANK_OVERRIDES)
# A job's folder and mode are said by the launcher, its environment is set from its first line, and
# a study's address may hold a password, which any user could read in the list of processes.
_SAID_BY_LAUNCHER = ("mode=", "run.", "sweep.", "job.env_set.", "sweeper.storage=")
NOT_FOR_JOBS = tuple(f"hydra.{key}" for key in _SAID_BY_LAUNCHER)


def role_of(key: str) -> Role:
    """Return the role of a dotted key or a group; that of weights where none is listed."""
    while key not in ROLES and (cut := max(key.rfind(mark) for mark in "./@")) > 0:
        key = key[:cut]
    return ROLES.get(key, Role.weights)


def is_under(key: str, groups: Collection[str]) -> bool:
    """Return whether a key is one of these or below one of them."""
    return any(re.match(rf"{re.escape(group)}([./@]|$)", key) for group in groups)


def typed_keys(overrides: Collection[str]) -> set[str]:
    """Return the keys of overrides; that of a group is where it is put, as `tuning`."""
    return {one.lstrip("+~").partition("=")[0].rpartition("@")[2] for one in overrides}


def without_effect(
    typed: Collection[str], plain: dict[str, Any], reads: Collection[str], kept: Collection[str]
) -> set[str]:
    """Return the typed keys that are `kept`, or neither read nor referred to by one that is.

    `plain` is the configuration, not resolved. Of what says where and how a command is run, and of
    groups that are no key, nothing is said.
    """
    read, waiting = set[str](), [*reads]
    while waiting:
        if (key := waiting.pop()) not in read:
            read.add(key)
            for text in re.findall(r"\$\{([^}]*)", str(_value(plain, key))):
                waiting += re.findall(r"[A-Za-z_][\w.]*", text)
    return {
        key
        for key in typed
        if role_of(key) is not Role.place and key.partition(".")[0] in plain
        if is_under(key, kept)
        or not (is_under(key, read) or any(is_under(one, [key]) for one in read))
    }


def _value(plain: dict[str, Any], key: str) -> Any:
    value: Any = plain
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def of_roles(plain: dict[str, Any], *roles: Role) -> dict[str, Any]:
    """Return the keys of a plain configuration that have one of these roles."""
    divided = {key.partition(".")[0] for key in ROLES if "." in key}
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if key in divided and isinstance(value, dict):
            if kept := {k: v for k, v in value.items() if role_of(f"{key}.{k}") in roles}:
                found[key] = kept
        elif role_of(key) in roles:
            found[key] = value
    return found

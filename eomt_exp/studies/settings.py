"""Settings of a study, conf/hydra/sweeper/optuna.yaml, checked before anything begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

DIRECTIONS = ("maximize", "minimize")
ON_STALE = ("requeue", "fail", "ignore")


class StudyError(ValueError):
    """A study cannot begin or go on; the message says what to type."""


@dataclass
class StudySettings:
    """conf/hydra/sweeper/optuna.yaml, where each key is explained."""

    study: str
    storage: str | None = None
    objective: list[str] = field(default_factory=list)
    n_trials: int = 20
    n_jobs: int | None = None
    seed: int = 0
    sampler: dict[str, Any] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    forbid: list[Any] = field(default_factory=list)
    constraints: dict[str, str] = field(default_factory=dict)
    try_defaults: bool = True
    max_failure_rate: float = 0.5
    max_retries: int = 1
    on_stale: str = "requeue"

    def __post_init__(self) -> None:
        """Ranges."""
        if not self.objective or len(self.directions) < len(self.objective):
            raise StudyError(
                f"hydra.sweeper.objective is a list of 'maximize <metric>' or 'minimize <metric>', "
                f"got {self.objective}; write 'hydra.sweeper.objective=[maximize val/ap]'."
            )
        if self.on_stale not in ON_STALE:
            raise StudyError(
                f"hydra.sweeper.on_stale must be one of {', '.join(ON_STALE)}, "
                f"got {self.on_stale!r}."
            )
        lowest = {"n_trials": 1, "n_jobs": 1, "max_retries": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise StudyError(f"hydra.sweeper.{name} must be at least {least}, got {value}.")
        if not 0 <= self.max_failure_rate <= 1:
            raise StudyError(
                f"hydra.sweeper.max_failure_rate is a share, 0 to 1, got {self.max_failure_rate}."
            )
        if not self.study or any(sign in self.study for sign in "/\\"):
            raise StudyError(
                f"hydra.sweeper.study is the name of a folder, got {self.study!r}; "
                "write hydra.sweeper.study=my_study."
            )

    @property
    def directions(self) -> dict[str, str]:
        """{metric: maximize | minimize}, of the objectives that say so."""
        pairs = [entry.split() for entry in self.objective]
        return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and pair[0] in DIRECTIONS}


def read_settings(node: DictConfig) -> StudySettings:
    """From `config.hydra.sweeper`; StudyError for an unknown key or a value of a wrong type."""
    allowed = OmegaConf.structured(StudySettings(study="x", objective=["maximize x"]))
    plain: Any = OmegaConf.to_container(node, resolve=True)
    plain = {str(k): v for k, v in plain.items() if not str(k).startswith("_")}
    for key in plain:
        if key not in allowed:
            near = get_close_matches(key, list(allowed), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise StudyError(
                f"hydra.sweeper.{key} is no setting{hint} There are {', '.join(map(str, allowed))}."
            )
    try:
        return OmegaConf.to_object(OmegaConf.merge(allowed, plain))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise StudyError(f"hydra.sweeper: {str(error).splitlines()[0]}") from error

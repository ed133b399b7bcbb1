"""Types of the configuration's fixed keys, so that a typo or a wrong type names file and key.

Values live in conf/; only types stand here. Parts that are swapped by `_target_` stay untyped:
their constructors are their schema. Plain dataclasses: the engine takes them as its settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MISSING = "???"  # OmegaConf's word for "must be set"; written out so that the engine needs no Hydra


class Trainable(Enum):
    """Which parts of the model are trained; the rest is frozen."""

    head = "head"
    heads = "heads"
    last_blocks = "last_blocks"
    all = "all"


class Precision(Enum):
    """Autocast type; auto is bf16 where the device computes in it, else float32."""

    auto = "auto"
    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass
class OptimConfig:
    """conf/optim."""

    lr: float = MISSING
    backbone_lr_factor: float = MISSING
    weight_decay: float = MISSING
    layer_decay: float = MISSING
    head_warmup: float = MISSING
    backbone_warmup: float = MISSING
    poly_power: float = MISSING


@dataclass
class TrainerConfig:
    """conf/trainer."""

    epochs: int = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    num_workers: int = MISSING
    precision: Precision = MISSING
    device: str = MISSING
    clip_grad_norm: float = MISSING
    log_every: int = MISSING
    validate_every: int = MISSING
    keep_checkpoints: int = MISSING


@dataclass
class EvaluatorConfig:
    """conf/evaluator."""

    windows: bool = MISSING
    batch_size: int = MISSING
    bits: int = MISSING
    figures: int = MISSING
    verify: bool = MISSING


@dataclass
class TrackingConfig:
    """conf/tracking."""

    enabled: bool = MISSING
    uri: str = MISSING
    experiment: str = MISSING
    artifacts: str = MISSING
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class PathsConfig:
    """conf/paths: where this machine keeps things; each key has an environment default."""

    outputs: str = MISSING
    camvid: str | None = None
    road_anomaly: str | None = None
    outlier_objects: str | None = None
    deit_tiny: str | None = None


@dataclass
class Config:
    """The whole configuration."""

    name: str = MISSING
    seed: int = MISSING
    score: str = MISSING
    resume: bool = MISSING
    checkpoint: str | None = None
    start_from: str | None = None
    trainable: Trainable = MISSING
    task: Any = MISSING
    data: Any = MISSING
    recipe: Any = MISSING
    backbone: Any = MISSING
    model: Any = MISSING
    anomaly_head: Any = MISSING
    augmentation: Any = MISSING
    outlier_exposure: Any = MISSING
    loss: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)


def register() -> None:
    """Make the schema known to Hydra under the name conf/config.yaml starts its defaults with."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config, provider="eomt_exp/schema.py")

"""Types the configuration's fixed keys, so that a typo or a wrong type names file and key.

Values live in conf/; only types stand here. Parts that are swapped by `_target_` stay untyped:
their constructors are their schema. Plain dataclasses: the engine takes them as its settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
ON_STALE = ("requeue", "fail", "ignore")
EXPORTS = ("smiyc", "oodis")
MISSING: Any = "???"  # OmegaConf's sign of "must be set", so that the engine needs no Hydra


class Trainable(Enum):
    """Says which parts of the model are trained; the rest is frozen."""

    head = "head"
    heads = "heads"
    last_blocks = "last_blocks"
    all = "all"


class Parallel(Enum):
    """Says how the processes of a training share it; each has images of its own in both."""

    ddp = "ddp"  # each holds the whole model, and gradients are averaged
    fsdp = "fsdp"  # each keeps a part of the weights, gradients and optimiser state


class Precision(Enum):
    """Names the autocast type; auto is bf16 where the device computes in it, else float32."""

    auto = "auto"
    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


def _is_span(pair: Any) -> bool:
    """Return whether these are a start and an end, both in shares of a run or both in steps."""
    if not isinstance(pair, list) or [type(one) in (int, float) for one in pair] != [True, True]:
        return False
    start, end = pair
    return 0 <= start < end and (end <= 1 or start == 0 or start >= 1)


def refuse(text: str) -> NoReturn:
    """Raise UserError with this text."""
    # Imported now: this module is loaded for --help, which must not wait for torch.
    from eomt_exp.contracts import UserError

    raise UserError(text)


def _at_least(where: str, settings: Any, **lowest: float) -> None:
    """Refuse the first setting that is below its lowest value; None is no value."""
    for name, least in lowest.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            refuse(f"{where}.{name} must be at least {least}, got {value}.")


@dataclass
class OptimConfig:
    """Types conf/optim."""

    lr: float = MISSING
    backbone_lr_factor: float = MISSING
    weight_decay: float = MISSING
    layer_decay: float = MISSING
    decay_joint_blocks: bool = MISSING
    head_warmup: float = MISSING
    backbone_warmup: float = MISSING
    poly_power: float = MISSING
    mask_annealing: list[Any] | None = None  # of pairs of numbers; OmegaConf takes no 0 for a float

    def __post_init__(self) -> None:
        """Check ranges; OmegaConf calls this when it makes the object, not while it composes."""
        if self.lr == MISSING:
            return
        _at_least("optim", self, lr=0, backbone_lr_factor=0, weight_decay=0)
        _at_least("optim", self, layer_decay=0, poly_power=0)
        warmups = (self.head_warmup, self.backbone_warmup)
        shares = [share for share in warmups if share < 1]
        if min(warmups) < 0 or sum(shares) >= 1 or any(w != int(w) for w in warmups if w >= 1):
            refuse(
                "optim.head_warmup and optim.backbone_warmup are shares of the run that add up to "
                f"less than 1, or whole numbers of steps from 1 on; got {warmups[0]}, {warmups[1]}."
            )
        if not all(_is_span(pair) for pair in self.mask_annealing or []):
            refuse(
                "optim.mask_annealing holds one [start, end] for each block that sees queries, the "
                "start first, both shares of the run (up to 1) or both steps; "
                f"got {self.mask_annealing}."
            )


@dataclass
class TrainerConfig:
    """Types conf/trainer."""

    epochs: int = MISSING
    images_per_epoch: int | None = None
    batch_size: int = MISSING
    accumulate: int = MISSING
    num_workers: int = MISSING
    precision: Precision = MISSING
    device: str = MISSING
    compile: bool = MISSING
    clip_grad_norm: float = MISSING
    log_every: int = MISSING
    validate_every: int = MISSING
    keep_checkpoints: int = MISSING
    parallel: Parallel | None = None
    gradient_checkpointing: bool = False
    ema: float | None = None
    detect_anomaly: bool = False
    profile_steps: int | None = None

    def __post_init__(self) -> None:
        if self.epochs == MISSING:
            return
        _at_least("trainer", self, profile_steps=1)
        _at_least("trainer", self, epochs=1, images_per_epoch=1, batch_size=1, accumulate=1)
        _at_least("trainer", self, log_every=1, keep_checkpoints=1, num_workers=0, validate_every=0)
        if self.clip_grad_norm <= 0:
            refuse("trainer.clip_grad_norm must be above 0; 1e9 clips nothing.")
        if self.device not in ("auto", "cpu", "cuda"):
            refuse(f"trainer.device must be auto, cpu or cuda, got {self.device!r}.")
        if self.ema is not None and not 0 < self.ema < 1:
            refuse(f"trainer.ema must lie between 0 and 1, such as 0.999, got {self.ema}.")


class Fpr95(Enum):
    """Says which false positive rate is called FPR95."""

    first = "first"  # of the first threshold with recall >= 0.95
    interpolated = "interpolated"  # on the ROC curve, between the two thresholds around 0.95


class ScoreResolution(Enum):
    """Says where masks are multiplied with classes, see engine/detector.py."""

    input = "input"
    mask = "mask"


class ScoreType(Enum):
    """Says what scores are rounded to before they are measured."""

    float32 = "float32"
    float16 = "float16"


@dataclass
class ProtocolConfig:
    """Types conf/protocol: what numbers depend on beside the model and the images."""

    name: str = MISSING
    resize: bool = MISSING
    windows: bool = MISSING
    score_resolution: ScoreResolution = MISSING
    precision: Precision = MISSING
    scores: ScoreType = MISSING
    skip_images_without_anomaly: bool = MISSING
    fpr95: Fpr95 = MISSING
    components: bool = MISSING


@dataclass
class EvaluatorConfig:
    """Types conf/evaluator."""

    batch_size: int = MISSING
    bits: int = MISSING
    figures: int = MISSING
    verify: bool = MISSING
    known_classes: bool = MISSING
    operating_fpr: float = MISSING
    resamples: int = MISSING
    scratch_gb: float = MISSING
    allow_seen_images: bool = MISSING
    exports: list[str] = MISSING

    def __post_init__(self) -> None:
        if self.batch_size == MISSING:
            return
        _at_least("evaluator", self, batch_size=1, figures=0, resamples=0, scratch_gb=0)
        if not 17 <= self.bits <= 28:
            refuse(f"evaluator.bits must be from 17 to 28, got {self.bits}.")
        if not 0 < self.operating_fpr < 1:
            refuse(f"evaluator.operating_fpr must lie between 0 and 1, got {self.operating_fpr}.")
        if unknown := set(self.exports) - set(EXPORTS):
            refuse(
                f"evaluator.exports takes {', '.join(EXPORTS)}; got {', '.join(sorted(unknown))}."
            )


@dataclass
class TrackingConfig:
    """Types conf/tracking."""

    enabled: bool = MISSING
    uri: str = MISSING
    experiment: str = MISSING
    artifacts: str = MISSING
    tags: dict[str, str] = field(default_factory=dict)


FIT = "fit"  # of fusion.weights


class ScoreSpace(Enum):
    """Says in what space the scores of an ensemble are added, see engine/ensemble.py."""

    raw = "raw"
    rank = "rank"
    cdf = "cdf"


@dataclass
class FusionConfig:
    """Types fusion: how the scores of the members of an ensemble become one."""

    space: ScoreSpace = MISSING
    scores: Any = None  # a name, or a list of them
    weights: Any = None  # a list of numbers, or FIT

    def __post_init__(self) -> None:
        weights = self.weights if isinstance(self.weights, list) else []
        are_numbers = bool(weights) and all(type(one) in (int, float) for one in weights)
        if self.weights not in (None, FIT) and not are_numbers:
            refuse(
                f"fusion.weights={self.weights} must be a list of numbers, one a member; fit fits "
                "them, null weighs all alike."
            )


@dataclass
class QueryAnalysisConfig:
    """Types the thresholds of conf/task/analyse_queries.yaml."""

    min_confidence: float = MISSING
    min_share: float = MISSING
    mask_threshold: float = MISSING
    min_iou: float = MISSING

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                refuse(f"task.{name} must be from 0 to 1, got {value}.")


@dataclass
class RecipeConfig:
    """Types conf/recipe."""

    num_queries: int = MISSING
    masked_attention: bool = MISSING
    semantic_epochs: int = MISSING
    exposure_epochs: int = MISSING
    head_epochs: int = MISSING
    tuning_epochs: int = MISSING
    tuning_images: int | None = None
    batch_size: int = MISSING
    lr: float = MISSING
    exposure_lr: float = MISSING
    head_lr: float = MISSING
    backbone_lr_factor: float = MISSING
    layer_decay: float = MISSING
    num_points: int = MISSING
    crop_scale: list[float] = MISSING
    paste_probability: float = MISSING
    paste_min_scale: float = MISSING
    paste_max_scale: float = MISSING
    validate_every: int = MISSING


@dataclass
class DataConfig:
    """Types conf/data: what every data set must say; its parts are built by `_target_`."""

    name: str = MISSING
    num_classes: int = MISSING
    image_size: list[int] = MISSING
    road_classes: list[int] = MISSING
    cache: bool = MISSING
    on_broken: str = "error"
    limit: int | None = None
    train: Any = MISSING
    val: Any = MISSING
    outliers: Any = None
    val_outliers: Any = "${data.outliers}"  # of a data set whose file names none, and of old runs

    def __post_init__(self) -> None:
        if self.name != MISSING:
            _at_least("data", self, limit=1)


@dataclass
class Config:
    """The whole configuration."""

    name: str = MISSING
    seed: int = MISSING
    score: str = MISSING
    resume: bool = MISSING
    checkpoint: Any = None  # a string; of task=evaluate also a list of them
    ensemble: list[str] = field(default_factory=list)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    strict: bool = True
    load_class_head: bool = True
    delta_weights: bool | None = None
    start_from: str | None = None
    tuned_on: str | None = None
    trainable: Trainable = MISSING
    task: Any = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    known: Any = None
    outliers: Any = None
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    backbone: Any = MISSING
    model: Any = MISSING
    class_head: Any = field(default_factory=lambda: {"_target_": None})  # of runs without it
    anomaly_head: Any = MISSING
    augmentation: Any = MISSING
    outlier_exposure: Any = MISSING
    loss: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    mining: dict[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: dict[str, str | None] = field(default_factory=dict)  # outputs, and a name a data set


@dataclass
class StudyConfig:
    """Types conf/hydra/sweeper/optuna.yaml."""

    study: str = MISSING
    storage: str | None = None
    objective: list[str] = MISSING
    n_trials: int = MISSING
    n_jobs: int | None = None
    seed: int = MISSING
    sampler: dict[str, Any] = MISSING
    pruner: dict[str, Any] = MISSING
    params: dict[str, Any] = MISSING
    forbid: list[Any] = MISSING
    constraints: dict[str, str] = MISSING
    try_defaults: bool = MISSING
    max_failure_rate: float = MISSING
    max_retries: int = MISSING
    on_stale: str = MISSING

    def __post_init__(self) -> None:
        pairs = [entry.split() for entry in self.objective]
        is_objective = all(len(p) == 2 and p[0] in ("maximize", "minimize") for p in pairs)
        is_objective &= 0 < len(pairs) == len({pair[-1] for pair in pairs if pair})
        is_name = self.study not in ("", ".", "..") and not {"/", "\\"} & {*self.study}
        _at_least("hydra.sweeper", self, n_trials=1, n_jobs=1, max_retries=0)
        _check_ranges("hydra.sweeper", self, {
            "objective": (is_objective, "[maximize val/ap], each metric once"),
            "on_stale": (self.on_stale in ON_STALE, " or ".join(ON_STALE)),
            "max_failure_rate": (0 <= self.max_failure_rate <= 1, "0.5, a share"),
            "study": (is_name, "my_study, a folder's name"),
        })  # fmt: skip

    @property
    def directions(self) -> dict[str, Any]:
        """Return {metric: maximize | minimize}."""
        return {metric: way for way, metric in (entry.split() for entry in self.objective)}


@dataclass
class ProcessLauncherConfig:
    """Types conf/hydra/launcher/process.yaml."""

    slots: Any = MISSING
    gpus: str | None = None
    num_processes: int = MISSING
    threads: Any = MISSING
    grace_s: float = MISSING

    def __post_init__(self) -> None:
        counts = (self.slots, self.threads)
        are_counts = [one == "auto" or (type(one) is int and one >= 1) for one in counts]
        _at_least("hydra.launcher", self, num_processes=1, grace_s=0)
        _check_ranges("hydra.launcher", self, {
            "slots": (are_counts[0], "a number from 1, or auto"),
            "threads": (are_counts[1], "a number from 1, or auto"),
            "gpus": (self.gpus in (None, "auto"), "null, or auto; CUDA_VISIBLE_DEVICES chooses"),
        })  # fmt: skip


def _check_ranges(where: str, settings: Any, checks: dict[str, tuple[bool, str]]) -> None:
    """Refuse the first setting that is not right; `checks` say what is."""
    for name, (is_right, wanted) in checks.items():
        if not is_right:
            refuse(f"{where}.{name}={getattr(settings, name)} cannot be: type {wanted}.")


def typed(node: Any, kind: type[T], where: str) -> T:
    """Read the node of a Hydra plugin, which Hydra itself does not check, as a dataclass of ours.

    Raises UserError for an unknown key, a wrong type, or a value out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    allowed = OmegaConf.structured(kind)
    plain: Any = OmegaConf.to_container(node, resolve=True)
    plain = {str(key): value for key, value in plain.items() if not str(key).startswith("_")}
    try:
        return OmegaConf.to_object(OmegaConf.merge(allowed, plain))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        refuse(f"{where}: {first}. There are {', '.join(map(str, allowed))}.")

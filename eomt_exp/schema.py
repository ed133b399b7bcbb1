"""Types the configuration's fixed keys, so that a typo or a wrong type names file and key.

Values live in conf/; only types stand here. Parts that are swapped by `_target_` stay untyped:
their constructors are their schema. Plain dataclasses: the engine takes them as its settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

from eomt_exp.ranges import Count, NotNegative, Positive, Range, Share, Whole, fault, range_of

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


class OnBadLoss(Enum):
    """Says what becomes of a step whose loss or gradient is not finite."""

    error = "error"
    skip = "skip"


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


LONGEST_NAME = 200  # bytes; file systems take 255, and endings come on top


def is_folder_name(text: str) -> bool:
    """Return whether this can be the name of a folder below another one."""
    is_short = len(text.encode(errors="surrogateescape")) <= LONGEST_NAME
    return is_short and bool(text) and text[0] != "." and not {*"/\\\0"} & {*text}


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


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True) if is_dataclass(kind) else {}


def check_numbers(settings: Any, kind: Any, where: str = "") -> None:
    """Refuse, by its key, the first number that the types of a dataclass do not allow.

    `settings` are plain and nested; below a key that is not typed, a number must be finite.
    """
    hints = _types(kind)
    for name, value in settings.items():
        key, hint = f"{where}{name}", hints.get(name)
        if isinstance(value, dict):
            check_numbers(value, hint, f"{key}.")
        elif text := fault(value, range_of(hint)):
            refuse(f"{key} {text}.")


@dataclass
class OptimConfig:
    """Types conf/optim."""

    lr: NotNegative = MISSING
    backbone_lr_factor: NotNegative = MISSING
    weight_decay: NotNegative = MISSING
    layer_decay: NotNegative = MISSING
    decay_joint_blocks: bool = MISSING
    head_warmup: NotNegative = MISSING
    backbone_warmup: NotNegative = MISSING
    poly_power: NotNegative = MISSING
    mask_annealing: list[Any] | None = None  # of pairs of numbers; OmegaConf takes no 0 for a float

    def __post_init__(self) -> None:
        """Check what fits together; OmegaConf calls this for the object, not while it composes."""
        if self.lr == MISSING:
            return
        warmups = (self.head_warmup, self.backbone_warmup)
        shares = [share for share in warmups if share < 1]
        if sum(shares) >= 1 or any(w != int(w) for w in warmups if w >= 1):
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

    epochs: Count = MISSING
    images_per_epoch: Count | None = None
    batch_size: Count = MISSING
    accumulate: Count = MISSING
    num_workers: Whole = MISSING
    precision: Precision = MISSING
    device: str = MISSING
    compile: bool = MISSING
    clip_grad_norm: Positive = MISSING  # 1e9 clips nothing
    log_every: Count = MISSING
    validate_every: Whole = MISSING
    save_every: Count | None = None
    on_bad_loss: OnBadLoss = OnBadLoss.error
    keep_checkpoints: Count = MISSING
    keep_best: str | None = None
    parallel: Parallel | None = None
    gradient_checkpointing: bool = False
    ema: Annotated[float, Range(0, 1, is_open=True)] | None = None
    detect_anomaly: bool = False
    profile_steps: Count | None = None

    def __post_init__(self) -> None:
        if self.device not in (MISSING, "auto", "cpu", "cuda"):
            refuse(f"trainer.device must be auto, cpu or cuda, got {self.device!r}.")
        if self.keep_best not in (None, "val/miou", "val/ap"):
            refuse(f"trainer.keep_best must be val/miou, val/ap or null, got {self.keep_best!r}.")
        if self.keep_best and self.validate_every == 0:
            refuse("trainer.keep_best needs validations: add trainer.validate_every=1.")


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
    image_size: Annotated[list[int], Range(1, length=2)] | None = None
    score_resolution: ScoreResolution = MISSING
    precision: Precision = MISSING
    scores: ScoreType = MISSING
    skip_images_without_anomaly: bool = MISSING
    fpr95: Fpr95 = MISSING
    components: bool = MISSING
    curve: str = "exact"  # of protocols from before there was a choice

    def __post_init__(self) -> None:
        if self.curve not in ("exact", "tool"):
            refuse(f"protocol.curve must be exact or tool, got {self.curve!r}.")
        if self.curve == "tool" and self.scores is not ScoreType.float16:
            refuse(
                "protocol.curve=tool needs scores as the tool's files hold them: add "
                "protocol.scores=float16, or type protocol.curve=exact."
            )


@dataclass
class EvaluatorConfig:
    """Types conf/evaluator."""

    batch_size: Count = MISSING
    bits: Annotated[int, Range(17, 28)] = MISSING
    synthetic_images: Count = 60  # of runs without it
    figures: Whole = MISSING
    verify: bool = MISSING
    known_classes: bool = MISSING
    operating_fpr: Annotated[float, Range(0, 1, is_open=True)] = MISSING
    resamples: Whole = MISSING
    scratch_gb: NotNegative = MISSING
    allow_seen_images: bool = MISSING
    exports: list[str] = MISSING

    def __post_init__(self) -> None:
        if self.exports == MISSING:
            return
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

    min_confidence: Share = MISSING
    min_share: Share = MISSING
    mask_threshold: Share = MISSING
    min_iou: Share = MISSING


@dataclass
class PredictConfig:
    """Types the options of conf/task/predict.yaml."""

    maps: str = MISSING
    overlays: bool = MISSING
    masks: bool = MISSING
    smallest: Count = MISSING
    on_broken: str = MISSING

    def __post_init__(self) -> None:
        _check_ranges("task", self, {
            "maps": (self.maps in ("png", "npz", "none"), "png, npz or none"),
            "on_broken": (self.on_broken in ("error", "skip"), "error or skip"),
        })  # fmt: skip


@dataclass
class DemoConfig:
    """Types the options of conf/task/demo.yaml."""

    port: Annotated[int, Range(0, 65535)] = MISSING
    max_mb: Positive = MISSING
    max_side: Count = MISSING


@dataclass
class ExportConfig:
    """Types the options of conf/task/export.yaml."""

    format: str = MISSING
    size: Annotated[list[int], Range(1, length=2)] | None = None
    half: bool = MISSING
    images: Count = MISSING
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        formats = ("onnx", "torch_export", "hugging_face", "official")
        square = self.size is None or self.size[0] == self.size[1]
        _check_ranges("task", self, {
            "format": (self.format in formats, ", ".join(formats)),
            "half": (not self.half or self.format in formats[:2], "false, or a graph's format"),
            "size": (square or self.format != "hugging_face", "[640,640], a square"),
        })  # fmt: skip


@dataclass
class RecipeConfig:
    """Types conf/recipe."""

    num_queries: Count = MISSING
    masked_attention: bool = MISSING
    semantic_epochs: Count = MISSING
    exposure_epochs: Count = MISSING
    head_epochs: Count = MISSING
    tuning_epochs: Count = MISSING
    tuning_images: Count | None = None
    batch_size: Count = MISSING
    lr: NotNegative = MISSING
    exposure_lr: NotNegative = MISSING
    head_lr: NotNegative = MISSING
    backbone_lr_factor: NotNegative = MISSING
    layer_decay: NotNegative = MISSING
    num_points: Count = MISSING
    crop_scale: Annotated[list[float], Range(0, is_open=True, length=2)] = MISSING
    paste_probability: Share = MISSING
    paste_min_scale: Positive = MISSING
    paste_max_scale: Positive = MISSING
    validate_every: Whole = MISSING


@dataclass
class DataConfig:
    """Types conf/data: what every data set must say; its parts are built by `_target_`."""

    name: str = MISSING
    num_classes: Count = MISSING
    image_size: Annotated[list[int], Range(1, length=2)] = MISSING
    road_classes: Annotated[list[int], Range(0)] = MISSING
    cache: bool = MISSING
    on_broken: str = "error"
    limit: Count | None = None
    train: Any = MISSING
    val: Any = MISSING
    outliers: Any = None
    val_outliers: Any = "${data.outliers}"  # of a data set whose file names none, and of old runs


@dataclass
class Config:
    """The whole configuration."""

    name: str = MISSING
    seed: Whole = MISSING
    score: str = MISSING
    resume: bool = MISSING
    checkpoint: Any = None  # a string; of task=evaluate also a list of them
    ensemble: list[str] = field(default_factory=list)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    strict: bool = True
    load_class_head: bool = True
    delta_weights: bool | None = None
    input: Any = None  # of task=predict
    threshold: float | None = None  # likewise
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
    n_trials: Count = MISSING
    n_jobs: Count | None = None
    seed: Whole = MISSING
    sampler: dict[str, Any] = MISSING
    pruner: dict[str, Any] = MISSING
    params: dict[str, Any] = MISSING
    forbid: list[Any] = MISSING
    constraints: dict[str, str] = MISSING
    try_defaults: bool = MISSING
    max_failure_rate: Share = MISSING
    max_retries: Whole = MISSING
    on_stale: str = MISSING

    def __post_init__(self) -> None:
        pairs = [entry.split() for entry in self.objective]
        is_objective = all(len(p) == 2 and p[0] in ("maximize", "minimize") for p in pairs)
        is_objective &= 0 < len(pairs) == len({pair[-1] for pair in pairs if pair})
        _check_ranges("hydra.sweeper", self, {
            "objective": (is_objective, "[maximize val/ap], each metric once"),
            "on_stale": (self.on_stale in ON_STALE, " or ".join(ON_STALE)),
            "study": (is_folder_name(self.study), "my_study, a folder's name"),
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
    num_processes: Count = MISSING
    threads: Any = MISSING
    grace_s: NotNegative = MISSING

    def __post_init__(self) -> None:
        counts = (self.slots, self.threads)
        are_counts = [one == "auto" or (type(one) is int and one >= 1) for one in counts]
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
    check_numbers(plain, kind, f"{where}.")
    try:
        return OmegaConf.to_object(OmegaConf.merge(allowed, plain))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        refuse(f"{where}: {first}. There are {', '.join(map(str, allowed))}.")

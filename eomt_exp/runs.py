"""Run folders keep what lets a run be resumed, found by content and loaded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eomt_exp.build import build, build_all
from eomt_exp.config_keys import NEUTRAL, SETTINGS, Role, of_roles
from eomt_exp.contracts import CheckpointError, Model, UserError
from eomt_exp.engine.detector import Detector
from eomt_exp.files import write_text
from eomt_exp.paths import asset_dir, at_home
from eomt_exp.schema import Config
from eomt_exp.weights.loading import Report, load_checkpoint
from eomt_exp.weights.weight_files import HUB, WEIGHTS, local_path

CONFIG = "config.yaml"
METRICS = "metrics.json"
STATES = "checkpoints"
_IOU = "val/iou_"  # of one known class

# Classes that run folders name and that are gone: one has moved, of the others conf/data/ says what
# they said.
_MOVED = {"eomt_exp.data.anomaly_layouts.Layout": "eomt_exp.data.files.layouts.Layout"}
_REPLACED = {
    "eomt_exp.data.camvid.CamVid": "camvid",
    "eomt_exp.data.cityscapes.Cityscapes": "cityscapes",
    "eomt_exp.data.bdd100k.BDD100K": "bdd100k",
    "eomt_exp.data.ade20k.ADE20K": "ade20k",
}


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain values."""
    return dict(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))  # type: ignore[arg-type]


def training_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return what a run must keep from one try to the next: its name and what decides weights."""
    found = of_roles(plain(cfg), *SETTINGS)
    for key, neutral in NEUTRAL.items():
        *groups, name = key.split(".")
        settings = reduce(lambda node, group: node.get(group, {}), groups, found)
        if settings.get(name) == neutral:
            settings.pop(name, None)
    return found


def content_key(cfg: DictConfig, besides: Sequence[str] = ()) -> str:
    """Name runs of equal training settings; `besides` the run's name these keys may differ."""
    found = training_settings(cfg)
    roles = (Role.weights, Role.loading) if found.get("checkpoint") else (Role.weights,)
    kept = {k: v for k, v in of_roles(found, *roles).items() if k not in besides}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def begin(cfg: DictConfig, run_dir: Path, besides: Sequence[str] = ()) -> None:
    """Write the folder's config.yaml; UserError where the run was begun with other settings.

    What may differ between two tries is written anew: the numbers will be of the later one. Keys
    `besides` those of a training may not.
    """
    path = run_dir / CONFIG
    if path.is_file():
        old, new = (
            training_settings(one) | {key: plain(one).get(key) for key in besides}
            for one in (_stored(path), cfg)
        )
        differing = differences(old, new)
        if differing:
            raise UserError(
                f"{run_dir} was begun with other settings: {'; '.join(differing[:4])}. "
                "Give hydra.run.dir a new folder, or resume=false to start afresh."
            )
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(plain(cfg))))


def read_metrics(run_dir: Path) -> dict[str, Any] | None:
    """Read the finished run's metrics.json, or return None."""
    path = run_dir / METRICS
    return json.loads(path.read_text()) if path.is_file() else None


def load_config(run_dir: Path) -> DictConfig:
    """Read the configuration a run was trained with. Raises CheckpointError for another file."""
    path = run_dir / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is no run folder: it has no {CONFIG}.")
    try:
        return _with_schema(_stored(path))
    except (OmegaConfBaseException, YAMLError, UnicodeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is no configuration of a run: {first}") from error


def _stored(path: Path) -> Any:
    return OmegaConf.create(_of_today(OmegaConf.to_container(OmegaConf.load(path))))


def _of_today(node: Any) -> Any:
    """Return stored settings with today's classes for those that are gone, and no ~ in a path."""
    if isinstance(node, list):
        return [_of_today(value) for value in node]
    if isinstance(node, str):
        return at_home(node)
    if not isinstance(node, dict):
        return node
    found = {key: _of_today(value) for key, value in node.items()}
    target = found.get("_target_")
    if target in _MOVED:
        found["_target_"] = _MOVED[target]
    elif target in _REPLACED:
        file = asset_dir("conf") / "data" / f"{_REPLACED[target]}.yaml"
        today: Any = OmegaConf.to_container(OmegaConf.load(file))
        found = today["train"] | {key: found[key] for key in found if key != "_target_"}
    return found


def _with_schema(found: Any) -> DictConfig:
    if "protocol" not in found:  # of a run from before there were protocols
        windows = found.get("evaluator", {}).pop("windows", True)
        found.protocol = {"windows": windows, "score_resolution": "input"}
        for node in found.get("benchmark", {}).values():
            node.pop("images", None)  # the layout is found in place now
            node.pop("labels", None)
    return OmegaConf.merge(OmegaConf.structured(Config), found)  # type: ignore[return-value]


def is_run(where: str | Path) -> bool:
    """Return whether this is a run folder, as opposed to weights from elsewhere."""
    return (Path(where) / CONFIG).is_file()


def weights_of(where: str | Path) -> str | Path:
    """Return a run folder's weights, or what is a file, folder or hub id of weights itself.

    Raises CheckpointError for the folder of a run that has not come to its end.
    """
    if not is_run(where):
        return where
    path = Path(where) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{where} is unfinished: it has no {WEIGHTS} yet. The command that began it goes on "
            "with it; only then can it be a checkpoint."
        )
    return path


def trained_size(where: str | Path) -> tuple[int, int] | None:
    """Return the (H, W) of the images a run folder or its weights were trained on; else None."""
    folder = Path(where).parent if Path(where).name == WEIGHTS else Path(where)
    return tuple(load_config(folder).data.image_size) if is_run(folder) else None


def load_model(run_dir: Path) -> tuple[DictConfig, Model]:
    """Load a finished run's configuration and its model, with its weights, in eval mode."""
    cfg = load_config(run_dir)
    model = build_model(cfg, pretrained=False)
    fill(model, run_dir)
    return cfg, model.eval()


def fill(
    model: Model,
    where: str | Path,
    *,
    strict: bool = True,
    load_class_head: bool = True,
    delta_weights: bool | None = None,
) -> Report:
    """Load the weights of a run folder, file or hub id into `model`, as load_checkpoint does.

    A run knows what it holds: whole weights, and for images of which size.
    """
    return load_checkpoint(
        model,
        weights_of(where),
        strict=strict,
        load_class_head=load_class_head,
        delta_weights=False if is_run(where) else delta_weights,
        trained_size=trained_size(where),
    )


def build_model(cfg: DictConfig, pretrained: bool = True) -> Model:
    """Build cfg.model; with `pretrained=False` without the backbone's own weights.

    A model that is a whole by itself, such as ERFNet, has no encoder among its keys.
    """
    node: dict[str, Any] = plain(cfg)["model"]
    encoder = node.get("encoder", {})
    unset = {} if pretrained else {"weights": None, "needs_weights": None, "pretrained": False}
    encoder |= {k: v for k, v in unset.items() if k in encoder}
    if str(encoder.get("weights")).startswith(HUB):
        encoder["weights"] = str(local_path(encoder["weights"]))
    model: Model = build(node, "model")
    return model


def window_size(cfg: DictConfig) -> tuple[int, int]:
    """Return the (H, W) at which a model is evaluated; unless said, what it was trained on."""
    height, width = cfg.protocol.image_size or cfg.data.image_size
    return height, width


def make_detector(
    cfg: DictConfig, model: Model, precision: str, score: str | None = None
) -> Detector:
    """Make the detector of a configuration around a model."""
    return Detector(
        model=model,
        scorers=build_all(cfg.scorer, "scorer"),
        score=score or cfg.score,
        image_size=window_size(cfg),
        windows=cfg.protocol.windows,
        batch_size=cfg.evaluator.batch_size,
        precision=precision,
        resolution=cfg.protocol.score_resolution.value,
    )


class Validated(NamedTuple):
    """Holds what the validation of a run found out that those who use its model need."""

    thresholds: dict[str, float]  # by scorer: evaluator.operating_fpr of the pixels lie above
    class_names: list[str]  # of the known classes; none where they were not measured


def validated(source: str | Path) -> Validated:
    """Read it from a run's metrics.json; nothing is known of weights, or of several models."""
    found = read_metrics(Path(source)) or {}
    models = found.get("manifest", {}).get("models", {})
    if len(models) != 1:
        return Validated({}, [])
    (facts,) = models.values()
    names = [key.removeprefix(_IOU) for key in found["metrics"] if key.startswith(_IOU)]
    return Validated(facts.get("thresholds", {}), names)


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names; lists stay whole."""
    if not isinstance(node, dict):
        return {key: node}
    below = (flat(value, f"{key}.{name}" if key else str(name)) for name, value in node.items())
    return {name: value for found in below for name, value in found.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old -> new` for every leaf of two nested mappings that differs."""
    old, new = flat(old), flat(new)
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]

"""The semantic EoMT that fine-tuning begins with: found by its content, or trained once."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.engine.checkpoint import WEIGHTS

# Choices and keys that say which semantic EoMT is meant; the rest of a command is about what
# comes after it.
_GROUPS = ("data", "recipe", "backbone", "model", "augmentation", "paths", "tracking", "debug")
_KEYS = (
    *("data", "recipe", "backbone", "model", "augmentation", "paths", "tracking", "evaluator"),
    *("seed", "trainer.device", "trainer.precision", "trainer.num_workers"),
)


def find_or_train(cfg: DictConfig) -> Path:
    """The run folder of the semantic EoMT with this configuration's model, data and seed."""
    from eomt_exp.tasks.train import train

    semantic = semantic_config()
    folder = Path(cfg.paths.outputs) / "semantic" / f"by-content-{runs.content_key(semantic)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A second process that needs the same model waits here, and then finds it.
    with FileLock(f"{folder}.lock"):
        found = _find(folder, semantic)
        if found is not None:
            print(f"semantic EoMT: found {found}", flush=True)
            return found
        print(f"semantic EoMT: none for this model, data and seed; training it in {folder}")
        folder.mkdir(exist_ok=True)
        train(semantic, folder)
    return folder


def semantic_config() -> DictConfig:
    """What `+experiment=semantic` would be with this command's data, model and seed."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    overrides = [
        f"{group}={choices[group]}"
        for group in _GROUPS
        if choices.get(group) is not None and not _is_null(choices[group])
    ]
    for override in hydra_config.overrides.task:
        key = override.lstrip("+~").split("=", 1)[0]
        is_value = "." in key or key == "seed"
        if is_value and any(key == k or key.startswith(f"{k}.") for k in _KEYS):
            overrides.append(override)
    return compose("config", overrides=["+experiment=semantic", *overrides])


def _is_null(choice: object) -> bool:
    return str(choice) == "null"


def _find(folder: Path, semantic: DictConfig) -> Path | None:
    """This very folder, or a run of `+experiment=semantic` that came to the same."""
    wanted = runs.content_key(semantic)
    others = sorted(folder.parent.glob(f"*/{runs.CONFIG}"), reverse=True)
    for run_dir in [folder, *(path.parent for path in others)]:
        is_complete = (run_dir / WEIGHTS).is_file() and runs.read_metrics(run_dir) is not None
        if is_complete and runs.content_key(runs.load_config(run_dir)) == wanted:
            return run_dir
    return None

"""Finds the semantic EoMT that fine-tuning begins with by its content; it is trained once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from eomt_exp import runs
from eomt_exp.config_keys import OF_ALL_STAGES
from eomt_exp.engine.device import agreed, is_first_process
from eomt_exp.schema import DataConfig
from eomt_exp.weights.weight_files import WEIGHTS


@contextmanager
def semantic_run(cfg: DictConfig) -> Iterator[tuple[Path, DictConfig | None]]:
    """Give the run folder of the semantic EoMT with this configuration's model, data and seed.

    And, where none has been trained, the configuration to train there. A second job that needs the
    same model waits here, and then finds it.
    """
    semantic = semantic_config(cfg)
    folder = Path(cfg.paths.outputs) / "semantic" / f"by-content-{runs.content_key(semantic)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One process of a job takes the lock for all: the others must be free to train with it.
    first = is_first_process()
    with _locked(f"{folder}.lock") if first else nullcontext():
        found = agreed(_find(folder, semantic) if first else None)
        if found is not None:
            _say(f"semantic EoMT: found {found}")
            yield found, None
        else:
            _say(f"semantic EoMT: none for this model, data and seed; training it in {folder}")
            folder.mkdir(exist_ok=True)
            yield folder, semantic


def semantic_config(cfg: DictConfig) -> DictConfig:
    """Return `+experiment=semantic` with this configuration's model, data and seed.

    Its data are those of `known`, where cfg.data has no labels of known classes.
    """
    semantic = compose("config", overrides=["+experiment=semantic"])
    with open_dict(semantic):
        for key in OF_ALL_STAGES:
            group, _, name = key.rpartition(".")
            to, given = (semantic[group], cfg[group]) if group else (semantic, cfg)
            to[name] = given[name]  # a group with its interpolations, which find their new home
        if cfg.known is not None:
            semantic.data = OmegaConf.merge(OmegaConf.structured(DataConfig), cfg.known)
    return semantic


def _say(text: str) -> None:
    if is_first_process():
        print(text, flush=True)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a file lock, and say so where it has to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another job trains this semantic EoMT; waiting for {path}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _find(folder: Path, semantic: DictConfig) -> Path | None:
    """Return this very folder, or a run of `+experiment=semantic` with the same content key."""
    wanted = runs.content_key(semantic)
    others = sorted(folder.parent.glob(f"*/{runs.METRICS}"), reverse=True)
    for run_dir in [folder, *(path.parent for path in others)]:
        done = (runs.read_metrics(run_dir) or {}).get("manifest", {}).get("content_key")
        if done is None or not (run_dir / WEIGHTS).is_file():
            continue
        # A run of an earlier commit may name classes of data that have been replaced since.
        if wanted in (done, runs.content_key(runs.load_config(run_dir))):
            return run_dir
    return None

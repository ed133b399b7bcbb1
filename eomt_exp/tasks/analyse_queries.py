"""`task=analyse_queries` looks at the queries of a trained model, for people and for Maskomaly."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from eomt_exp.engine.device import is_first_process
from eomt_exp.run_folders import working_in
from eomt_exp.tasks.evaluate import as_trained, opened
from eomt_exp.tasks.image_sets import read_sets
from eomt_exp.tasks.mined_queries import analyse, thresholds_of


def run(cfg: DictConfig) -> None:
    """Write tables, page and mined queries of the model at cfg.checkpoint into Hydra's folder."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    read_sets.forget_files()
    with working_in(run_dir, Path(cfg.paths.outputs)) if is_first_process() else nullcontext():
        cfg, thresholds = as_trained(cfg), thresholds_of(cfg)
        with opened(cfg, run_dir) as (source, load):
            analyse(cfg, thresholds, source, load, run_dir)

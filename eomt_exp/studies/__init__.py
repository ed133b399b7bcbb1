"""Studies: what Optuna asks, tries and finds, behind Hydra's --multirun."""

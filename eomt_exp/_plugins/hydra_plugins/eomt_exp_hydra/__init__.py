"""Hydra's plugins of this suite, thin and quick to import: Hydra imports all on each start."""

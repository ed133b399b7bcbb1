"""Runs the parts: training, evaluation, detection, checkpoints."""

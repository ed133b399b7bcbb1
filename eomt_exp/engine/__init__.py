"""Training, evaluation, checkpoints, tracking: what runs the parts."""

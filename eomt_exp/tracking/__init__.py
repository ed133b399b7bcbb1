"""Records runs: MLflow and metrics.jsonl."""

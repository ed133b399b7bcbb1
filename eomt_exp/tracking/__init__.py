"""What a run records: MLflow and metrics.jsonl."""

"""Files, or a renderer, to batches."""

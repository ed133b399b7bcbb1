"""Outputs to score maps; a higher score is more anomalous."""

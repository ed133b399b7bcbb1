"""Scorers turn outputs into score maps; a higher score is more anomalous."""

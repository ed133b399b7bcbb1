"""Heads classify queries as normal, anomaly or no-object."""

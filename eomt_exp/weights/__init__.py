"""Weights of models: files, public formats, loading."""

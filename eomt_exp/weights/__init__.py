"""Reads, converts and loads the weights of models."""

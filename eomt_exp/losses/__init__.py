"""Losses turn outputs and targets into named terms."""

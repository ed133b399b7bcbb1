"""Outputs and targets to named loss terms."""

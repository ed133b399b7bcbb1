"""Queries to states."""

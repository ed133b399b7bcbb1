"""Examines data sets for task=doctor, and says what counts as wrong."""

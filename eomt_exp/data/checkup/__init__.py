"""task=doctor: what is examined in a data set, and what counts as wrong."""

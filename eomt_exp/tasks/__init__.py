"""Each file is a task of `python -m eomt_exp`."""

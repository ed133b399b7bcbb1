"""One file a verb of python -m eomt_exp."""

"""Finds, pairs and decodes the files of a data set."""

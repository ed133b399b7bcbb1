"""Turns files, or what a renderer draws, into batches.

It is no top-level `datasets`, as in the official EoMT: that hides Hugging Face's from all that is
imported after it.
"""

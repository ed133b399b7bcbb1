"""Files, or a renderer, to batches.

A room of the package, not the official top-level `datasets`, which hides Hugging Face's from all
that is imported after it.
"""

"""Backbones turn an image into tokens, or into a pyramid of 2-D maps."""

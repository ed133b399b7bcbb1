"""Image to tokens."""

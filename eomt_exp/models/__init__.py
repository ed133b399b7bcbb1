"""Image to MaskOutput."""

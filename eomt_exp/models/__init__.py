"""Models turn an image into a MaskOutput or a PixelOutput."""

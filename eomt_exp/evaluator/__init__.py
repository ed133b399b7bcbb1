"""Score maps and labels to numbers; knows no model."""

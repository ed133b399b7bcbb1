"""The evaluator turns score maps and labels into numbers; it depends on no model."""

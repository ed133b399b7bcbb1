"""The one rule for temperatures (Guo et al., ICML 2017): above 0, and logits are divided by it."""

from __future__ import annotations


def checked_temperature(temperature: float) -> float:
    """Return it, or raise ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    return temperature

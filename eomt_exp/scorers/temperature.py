"""Check temperatures (Guo et al., ICML 2017): they are above 0, and logits are divided by them."""

from __future__ import annotations

from eomt_exp.contracts import UserError


def checked_temperature(temperature: float) -> float:
    """Return it, or raise UserError unless it is above 0."""
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}.")
    return temperature

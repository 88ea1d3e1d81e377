"""The refusal of steady states that do not exist."""

from __future__ import annotations


def stability_limit(bound: float, max_curvature: float) -> float:
    """Return the learning rate at which rate * curvature reaches ``bound``; infinite for a flat problem."""
    return bound / max_curvature if max_curvature > 0.0 else float("inf")


def require_steady_state(name: str, rate: float, limit: float, *, meaning: str = "") -> None:
    """Raise unless 0 < ``rate`` < ``limit``.

    Args:
        name: The rate's name for the message.
        rate: The effective learning rate.
        limit: The stability limit that it must stay below.
        meaning: How the rate is made of the arguments, for the message.
    """
    label = f"{name} (= {meaning})" if meaning else name
    if rate <= 0.0:
        raise ValueError(f"no steady state: {label} = {rate:g} must be > 0")
    if rate >= limit:
        raise ValueError(f"unstable: {label} = {rate:g} >= {limit:g}; need {name} < {limit:g}")

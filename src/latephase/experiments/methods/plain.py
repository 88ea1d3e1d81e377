"""Plain SGD."""

from __future__ import annotations

from latephase.experiments.methods.method import Method


class Plain(Method):
    """Plain SGD from the first minibatch to the last."""

    name = "base"
    label = "base"
    summary = "plain SGD"

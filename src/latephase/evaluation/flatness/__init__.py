"""Flatness of the training loss, through curvlinops (the extra `flatness`)."""

from latephase.evaluation.flatness.hessian import Flatness, flatness

__all__ = ["Flatness", "flatness"]

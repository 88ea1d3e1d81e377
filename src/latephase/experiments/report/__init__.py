"""The report of a run folder, as a page and in the terminal."""

from latephase.experiments.report.page import render, write_report

__all__ = ["render", "write_report"]

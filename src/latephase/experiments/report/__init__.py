"""report.html."""

from pathlib import Path


def write_report(results: Path, page: Path) -> None:
    """Write the page."""

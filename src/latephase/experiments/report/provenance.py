"""Where a results file comes from: the lines that both reports end with."""

from __future__ import annotations

from typing import Any

from latephase.experiments.report.document import Code, Listing


def facts(results: dict[str, Any]) -> str:
    """Date, machine and commit in one line.

    Args:
        results: A results file.

    Returns:
        The line.
    """
    commit = f"commit {results['commit']}" if results["commit"] else "no commit"
    return f"{results['date']} · {results['device']} · {commit}"


def provenance(results: dict[str, Any], more: dict[str, str]) -> Listing:
    """Command, commit, machine and versions.

    Args:
        results: A results file.
        more: Further entries.

    Returns:
        The block.
    """
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    entries = {
        "command": Code(results["command"]),
        "commit": Code(results["commit"] or "not in a git repository"),
        "machine": results["device"],
        "date": results["date"],
        "versions": versions,
        **more,
    }
    return Listing(tuple(entries.items()))

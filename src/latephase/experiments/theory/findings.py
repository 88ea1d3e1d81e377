"""What the tables say, in sentences whose numbers are read from the tables."""

from __future__ import annotations

from collections.abc import Sequence

from latephase.experiments.theory.table import Table


def findings(tables: Sequence[Table]) -> list[str]:
    """Sentences about the tables that are there.

    Args:
        tables: Tables of the page.

    Returns:
        One sentence for each finding.
    """
    by_name = {table.name: table for table in tables}
    writers = {
        "steady-state-table": _floors,
        "equal-minibatches": _starts,
        "tuned": _tuned,
        "multiplicative": _multiplicative,
    }
    return [write(by_name[name]) for name, write in writers.items() if name in by_name]


def _row(table: Table, index: int) -> dict[str, str | int | float]:
    return dict(zip(table.header, table.rows[index], strict=True))


def _floors(table: Table) -> str:
    row = _row(table, min(1, len(table.rows) - 1))
    name = next(head for head in table.header if head.startswith("K=") and not head.endswith("member"))
    sgd, late, member = float(row["SGD"]), float(row[name]), float(row[f"{name} member"])
    return (
        f"Averaging divides the noise floor by K, as K-batch SGD does: at learning rate {row['lr']} SGD"
        f" stays at {sgd:.4f}, the average with {name} at {late:.4f}, its mean member at {member:.4f}."
    )


def _starts(table: Table) -> str:
    row = _row(table, len(table.rows) - 1)
    return (
        f"A late start trades bias for variance: after {row['N']} minibatches with K = {row['K']} the loss is"
        f" {float(row['at best T0']):.4f} from the best start at {row['best T0']}, {float(row['T0 = 0']):.4f} from the"
        f" beginning, {float(row['SGD']):.4f} for SGD, and {float(row['SGD lr/K from there']):.4f} for SGD whose rate"
        " drops by K at the same point."
    )


def _tuned(table: Table) -> str:
    losses = {str(row[0]): float(row[3]) for row in table.rows}
    settings = {str(row[0]): row[2] for row in table.rows}
    annealed, both, control = losses["SGD annealed"], losses["late phase, annealed"], losses["SGD lr/K, annealed"]
    return (
        f"With every learning rate tuned, late-phase training from its best start ({settings['late phase']}) reaches"
        f" {losses['late phase']:.4f} against {losses['SGD']:.4f} for SGD at a constant rate, but annealed SGD reaches"
        f" {annealed:.4f}. On top of annealing the best late phase ({settings['late phase, annealed']}) reaches"
        f" {both:.4f}; SGD whose annealed rate is divided by the same K at its best moment reaches {control:.4f}."
    )


def _multiplicative(table: Table) -> str:
    row = _row(table, 0)
    return (
        f"Where late-phase weights multiply, an early start also moves along the manifold of solutions: with"
        f" K = {row['K']} the factor lands at {float(row['landing']):.3f} and raises the floor from"
        f" {float(row['floor at 1']):.5f} to {float(table.rows[0][7]):.5f}; noise then drags it back only slowly."
    )

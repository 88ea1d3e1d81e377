"""Directives that run the command line: `{command-help} NAME` and `{recipe-table}`."""

import contextlib
import io
from functools import cache
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from latephase.cli import main


@cache
def said(*arguments: str) -> str:
    """What `latephase` with these arguments writes.

    Raises:
        RuntimeError: The command failed.
    """
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    if code:
        raise RuntimeError(f"latephase {' '.join(arguments)}: {written.getvalue()}")
    return written.getvalue().rstrip() + "\n"


class CommandHelp(Directive):
    """The help text of a command, from its own parser."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """See `Directive.run`."""
        text = said(*self.arguments, "--help")
        return [nodes.literal_block(text, text, language="text")]


class RecipeTable(Directive):
    """Every recipe that ships: its name, title, epochs, minibatches and cost."""

    def run(self) -> list[nodes.Node]:
        """See `Directive.run`."""
        from latephase.experiments.cost import cost_of, quantity
        from latephase.experiments.recipe import load_recipe, recipe_names

        heads = ("recipe", "setting", "epochs", "minibatches", "FLOP, one run", "FLOP, all runs")
        rows = []
        for name in recipe_names():
            recipe = load_recipe(name)
            cost = cost_of(recipe)
            numbers = (f"{cost.minibatches:,}", quantity(cost.flops), quantity(cost.all_flops))
            rows.append((name, recipe.title, str(recipe.training.epochs), *numbers))
        group = nodes.tgroup(cols=len(heads))
        group += [nodes.colspec(colwidth=1) for _ in heads]
        head, body = nodes.thead(), nodes.tbody()
        head += _row(heads, code=False)
        body += [_row(row, code=True) for row in rows]
        group += [head, body]
        return [nodes.table("", group, classes=["colwidths-auto"])]


def _row(cells: tuple[str, ...], code: bool) -> nodes.row:
    row = nodes.row()
    for i, cell in enumerate(cells):
        words = nodes.literal(cell, cell) if code and i == 0 else nodes.Text(cell)
        row += nodes.entry("", nodes.paragraph("", "", words))
    return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the build."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("recipe-table", RecipeTable)
    return {"parallel_read_safe": True}

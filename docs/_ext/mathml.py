r"""Formulae as MathML, by docutils: browsers draw it themselves, and no page asks the network for a script.

In docstrings `\(...\)` is a formula in the line.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

_INLINE = re.compile(r"\\\((.+?)\\\)", re.DOTALL)


def drawn(formula: str, block: bool) -> str:
    r"""A formula in MathML. `\Big` and the like go, since its brackets grow by themselves; rows are aligned."""
    formula = re.sub(r"\\[bB]igg?[lr]?(?![a-zA-Z])", "", formula).replace(r"\dots", r"\ldots")
    if r"\\" in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    made: str = latex2mathml.tex2mathml(formula, as_block=block)
    return made


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(drawn(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{drawn(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _formulae(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    text = "\n".join(lines)
    lines[:] = _INLINE.sub(lambda found: f":math:`{' '.join(found[1].split())}`", text).splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the build."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("autodoc-process-docstring", _formulae, priority=300)
    return {"parallel_read_safe": True}

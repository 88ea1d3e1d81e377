"""Names in docstrings and signatures lead to where they are documented.

A class is documented under its public name (`latephase.Head`) and annotated with the name of its file
(`latephase.families.head.Head`); text in single backticks is a link where it is a public name, and code elsewhere.
"""

import ast
import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.logging import getLogger

logger = getLogger(__name__)

MODULES = (
    "latephase",
    "latephase.families",
    "latephase.evaluation",
    "latephase.evaluation.corruptions",
    "latephase.evaluation.flatness",
    "latephase.evaluation.landscape",
    "latephase.export",
    "latephase.nqp",
    "latephase.integrations.lightning",
    "latephase.integrations.transformers",
    "latephase.integrations.distributed_checkpoint",
)
# Modules without `__all__`: what of them is public.
EXPORTED = {
    "latephase.integrations.lightning": ["LatePhaseCallback"],
    "latephase.integrations.transformers": ["LatePhaseCallback"],
    "latephase.integrations.distributed_checkpoint": ["PhaseState"],
}
# What the objects that users hold are called in prose.
HELD = {"late": "latephase.LatePhase", "signal": "latephase.StartSignal"}


def public(module: str) -> dict[str, Any]:
    """What a module exports, by name."""
    there = importlib.import_module(module)
    return {name: getattr(there, name) for name in EXPORTED.get(module) or there.__all__}


def documented(modules: tuple[str, ...] = MODULES) -> dict[str, list[str]]:
    """For every module the names that its page documents: those that no earlier module has."""
    seen: set[int] = set()
    found = {}
    for module in modules:
        mine = {name: thing for name, thing in public(module).items() if name != "__version__"}
        found[module] = [name for name, thing in mine.items() if id(thing) not in seen]
        seen |= {id(thing) for thing in mine.values()}
    return found


class ArrayLike:
    """Stands for `numpy.typing.ArrayLike`."""

    __module__ = "numpy.typing"


class NDArray(Generic[TypeVar("Scalar")]):
    """Stands for `numpy.typing.NDArray`."""

    __module__ = "numpy.typing"


def complete_types(package: str = "latephase") -> None:
    """Carry out the imports under `if TYPE_CHECKING:` of all loaded modules, so that annotations can be read."""
    for name in [each for each in sys.modules if each.partition(".")[0] == package]:
        module = sys.modules[name]
        if not (module.__file__ or "").endswith(".py") or "TYPE_CHECKING" not in vars(module):
            continue
        for node in ast.parse(Path(module.__file__ or "").read_text()).body:
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), name, "exec"), vars(module))
        # NumPy's aliases are unions of private protocols: signatures show their names.
        for alias in (ArrayLike, NDArray):
            if alias.__name__ in vars(module):
                setattr(module, alias.__name__, alias)


@cache
def _places() -> dict[str, str]:
    """Public name of everything, by the name of its file and by every module that exports it."""
    places: dict[str, str] = {}
    first: dict[int, str] = {}
    for module in MODULES:
        for name, thing in public(module).items():
            home = first.setdefault(id(thing), f"{module}.{name}")
            places[f"{module}.{name}"] = home
            if isinstance(thing, type) or callable(thing):
                places[f"{thing.__module__}.{getattr(thing, '__qualname__', name)}"] = home
    return places


def _candidates(target: str, node: addnodes.pending_xref) -> list[str]:
    name = target.removesuffix("()")
    head, _, rest = name.partition(".")
    places = _places()
    found = [places.get(name, name)]
    for depth in range(name.count("."), 0, -1):
        parts = name.split(".")
        owner = ".".join(parts[:depth])
        if owner in places:
            found.append(".".join([places[owner], *parts[depth:]]))
    if head in HELD and rest:
        found.append(f"{HELD[head]}.{rest}")
    for scope in filter(None, [node.get("py:module"), "latephase"]):
        found += [f"{scope}.{name}", places.get(f"{scope}.{name}", name)]
    return found


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    for name in _candidates(node["reftarget"], node):
        if name in domain.objects:
            entry = domain.objects[name]
            uri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
            reference = nodes.reference("", "", internal=True, refuri=f"{uri}#{entry.node_id}", reftitle=name)
            reference += contnode
            return reference
    return contnode if node["reftype"] == "obj" else None


class Public(Directive):
    """Everything that a module exports, from its docstrings; what stands on an earlier page is named at the end."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """See `Directive.run`."""
        module = self.arguments[0]
        things = public(module)
        here = sorted(documented()[module], key=lambda name: _rank(f"{module}.{name}", things[name]))
        lines = [f".. py:module:: {module}", ""]
        for name in here:
            lines += [*_entry(f"{module}.{name}", things[name]), ""]
        elsewhere = [
            f":py:obj:`{_places()[f'{module}.{name}']}`" for name in things if name not in (*here, "__version__")
        ]
        if elsewhere:
            lines += [f"Also in this module, documented elsewhere: {', '.join(elsewhere)}."]
        parent = nodes.section()
        parent.document = self.state.document
        self.state.nested_parse(StringList(lines, source=module), 0, parent)
        return parent.children


def _rank(name: str, thing: Any) -> int:
    """First what users hold, last what they catch; in between as the module has it."""
    return 2 * (isinstance(thing, type) and issubclass(thing, Exception)) or int(name not in HELD.values())


def _entry(name: str, thing: Any) -> list[str]:
    if isinstance(thing, type):
        options = ["members", "special-members: __call__"]
        return [
            f".. autoclass:: {name}",
            *(f"   :{option.partition(':')[0]}:{option.partition(':')[2]}" for option in options),
        ]
    if callable(thing) and hasattr(thing, "__qualname__"):
        return [f".. autofunction:: {name}"]
    module, _, own = name.rpartition(".")
    return [f".. py:data:: {own}", f"   :module: {module}", "", *(f"   {line}" for line in _words(own, thing))]


def _words(name: str, thing: Any) -> list[str]:
    """The docstring of a constant, which stands under its assignment in the file that makes it."""
    for module in [each for each in sys.modules if each.startswith("latephase")]:
        if getattr(sys.modules[module], name, None) is thing:
            analyzer = ModuleAnalyzer.for_module(module)
            found = analyzer.find_attr_docs().get(("", name))
            if found:
                return found
    return []


def _check(app: Sphinx, error: Exception | None) -> None:
    """Nothing public is missing from the site."""
    if error is None:
        objects = app.env.domains.python_domain.objects
        for module, names in documented().items():
            for name in names:
                if f"{module}.{name}" not in objects:
                    logger.warning("%s.%s is public and has no entry in the reference", module, name)


def _bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """|x| is a modulus, not a substitution of reStructuredText."""
    example = False
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            lines[i] = line.replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the build."""
    documented()
    complete_types()
    app.connect("build-finished", _check)
    app.connect("autodoc-process-docstring", _bars, priority=400)  # before napoleon
    app.add_directive("public", Public)
    app.connect("missing-reference", _resolve, priority=400)  # before intersphinx
    return {"parallel_read_safe": True}

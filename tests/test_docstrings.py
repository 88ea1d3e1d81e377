"""What every public docstring has: arguments, returns, errors, an example; and the types are complete."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import pytest

import latephase

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("public_names", ROOT / "docs" / "_ext" / "public_names.py")
public_names = importlib.util.module_from_spec(spec)
spec.loader.exec_module(public_names)


# The fast suite leaves out the modules whose trainers take seconds to import; `make docs` imports them.
TRAINERS = ("latephase.integrations.lightning", "latephase.integrations.transformers")
CHECKED = tuple(name for name in public_names.MODULES if name not in TRAINERS)


@cache
def surface() -> dict[str, object]:
    """Every public class and function by its dotted name, once; then their own methods and properties."""
    found: dict[str, object] = {}
    for module, names in public_names.documented(CHECKED).items():
        for name in names:
            thing = public_names.public(module)[name]
            if isinstance(thing, type) or inspect.isfunction(thing):
                found[f"{module}.{name}"] = thing
                found |= {f"{module}.{name}.{inner}": each for inner, each in methods(thing)}
    return found


def is_record(thing: object) -> bool:
    """What functions return: fields, and no behaviour to show."""
    return isinstance(thing, type) and (is_dataclass(thing) or issubclass(thing, tuple))


def methods(thing: object) -> Iterator[tuple[str, object]]:
    fields = getattr(thing, "__annotations__", {}) if is_record(thing) else {}
    for name, each in vars(thing).items() if isinstance(thing, type) else ():
        if name in fields:
            continue
        each = each.__func__ if isinstance(each, (classmethod, staticmethod)) else each
        if (not name.startswith("_") or name == "__call__") and (
            inspect.isfunction(each) or isinstance(each, property)
        ):
            yield name, each


def is_hook(name: str, thing: object) -> bool:
    """What a base class says already: a trainer's or torch's, which calls it, or one of ours that the text names."""
    if re.search(r"\bSee `", inspect.getdoc(thing) or ""):
        return True
    owner = surface().get(name.rpartition(".")[0])
    bases = inspect.getmro(owner)[1:] if isinstance(owner, type) else ()
    return any(name.rpartition(".")[2] in vars(base) for base in bases if not base.__module__.startswith("latephase"))


def section(thing: object, *heads: str) -> str:
    """The text of a section of a docstring."""
    for head in heads:
        match = re.search(rf"^{head}:\s*\n((?:[ ]+.*\n|\n)+)", (inspect.getdoc(thing) or "") + "\n", flags=re.MULTILINE)
        if match:
            return match[1]
    return ""


def parameters(thing: object) -> list[str]:
    target = thing.__init__ if isinstance(thing, type) else thing
    if is_record(thing):
        return list(thing.__annotations__)
    if isinstance(thing, property) or (isinstance(thing, type) and "__init__" not in vars(thing)):
        return []
    return [name for name in inspect.signature(target).parameters if name not in ("self", "cls")]


CALLABLES = {name: thing for name, thing in surface().items() if not isinstance(thing, property)}


def gaps(check) -> list[str]:
    return [name for name, thing in surface().items() if not is_hook(name, thing) and check(name, thing)]


def listed(check) -> dict[str, list[str]]:
    return {name: found for name in gaps(check) if (found := check(name, surface()[name]))}


def test_the_surface_is_large() -> None:
    assert len(surface()) > 150


def test_everything_has_a_docstring() -> None:
    assert gaps(lambda name, thing: not inspect.getdoc(thing)) == []


def test_every_argument_is_described() -> None:
    def missing(name: str, thing: object) -> list[str]:
        words = section(thing, "Args") + section(thing, "Attributes")
        named = set(re.findall(r"^\s*\*{0,2}(\w+)[^:\n]*:", words, flags=re.MULTILINE))
        return [each for each in parameters(thing) if each not in named]

    assert listed(missing) == {}


def test_no_argument_is_described_that_is_not_there() -> None:
    def extra(name: str, thing: object) -> list[str]:
        named = re.findall(r"^    \*{0,2}(\w+)\s*(?:\([^)]*\))?:", section(thing, "Args"), flags=re.MULTILINE)
        return [each for each in named if each not in parameters(thing)]

    assert listed(extra) == {}


def raised(thing: object) -> set[str]:
    """Errors of the library that a function's own body raises."""
    function = thing.fget if isinstance(thing, property) else thing
    if isinstance(thing, type):
        function = thing.__dict__.get("__init__")
    if function is None or not hasattr(function, "__code__") or function.__code__.co_filename.startswith("<"):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)} - {"AssertionError", "AttributeError"}


def test_every_error_is_described() -> None:
    def missing(name: str, thing: object) -> list[str]:
        words = section(thing, "Raises")
        return sorted(each for each in raised(thing) if each not in words)

    assert listed(missing) == {}


def test_what_is_returned_is_described() -> None:
    """In a section, or by the first line where that names it ("The plain model's state dict ...")."""

    def missing(name: str, thing: object) -> bool:
        if isinstance(thing, (type, property)):
            return False
        back = inspect.signature(thing).return_annotation
        if back in (None, "None", inspect.Signature.empty) or section(thing, "Returns", "Yields"):
            return False
        return bool(section(thing, "Args")) and len(parameters(thing)) > 0

    assert gaps(missing) == []


# No example calls these yet; none may be added.
NOT_SHOWN = {
    "latephase.evaluation.Metrics.reliability",
    "latephase.evaluation.landscape.StateEvaluator.classes",
    "latephase.export.Ensemble.one_after_the_other",
    "latephase.export.Format.read",
    "latephase.export.Format.write",
    "latephase.export.Verification.to_dict",
    "latephase.export.Written.summary",
    "latephase.export.Written.to_dict",
    "latephase.nqp.MultiplicativeLatePhase.drift",
    "latephase.nqp.MultiplicativeLatePhase.trajectory",
}


@cache
def shown() -> str:
    """All code that the tests of docstrings and pages carry out."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    code = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)]
    for thing in surface().values():
        lines = (inspect.getdoc(thing) or "").splitlines()
        code += [line for line in lines if line.lstrip().startswith((">>>", "..."))]
    return "\n".join(code)


def test_everything_has_an_example() -> None:
    """A class or function one of its own, but for records, errors and `Family`; a method in any code that is run."""

    def missing(name: str, thing: object) -> bool:
        owner, _, own = name.rpartition(".")
        if owner in surface():
            return own != "__call__" and not re.search(rf"\.{own}\b", shown())
        if is_record(thing) or thing is latephase.Family or (isinstance(thing, type) and issubclass(thing, Exception)):
            return False
        return ">>> " not in (inspect.getdoc(thing) or "")

    assert set(gaps(missing)) == NOT_SHOWN


@pytest.mark.parametrize("name", sorted(CHECKED))
def test_types_are_complete(name: str) -> None:
    public_names.complete_types()
    for each, thing in CALLABLES.items():
        if not each.startswith(name + ".") or (isinstance(thing, type) and "__init__" not in vars(thing)):
            continue
        target = thing.__init__ if isinstance(thing, type) else thing
        if target.__code__.co_filename.startswith("<"):
            continue
        signature = inspect.signature(target)
        untyped = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
        ]
        assert not untyped, (each, untyped)
        assert signature.return_annotation is not signature.empty, each
        typing.get_type_hints(target)


def test_every_public_package_is_on_a_page_of_the_reference() -> None:
    packages = ["latephase", *(m.name for m in pkgutil.walk_packages(latephase.__path__, "latephase.") if m.ispkg)]
    inner = ("latephase.experiments", "latephase.integrations")
    assert {each for each in packages if not each.startswith(inner)} <= set(public_names.MODULES)
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    assert set(re.findall(r"\.\. public:: (\S+)", pages)) == set(public_names.MODULES)
    for module in CHECKED:
        assert importlib.import_module(module).__doc__, module

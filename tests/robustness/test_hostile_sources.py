"""No call in the library's source that would run, or unpack without limits, what a file holds."""

import ast
import io
from pathlib import Path

import pytest

import latephase

ROOT = Path(latephase.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
NEVER = {
    "eval": "runs text",
    "exec": "runs text",
    "pickle.load": "runs what the file says",
    "pickle.loads": "runs what the file says",
    "pickle.Unpickler": "runs what the file says",
    "marshal.loads": "crashes on what the file says",
    "shelve.open": "is pickle",
    "joblib.load": "is pickle",
    "dill.load": "is pickle",
    "cloudpickle.load": "is pickle",
    "pandas.read_pickle": "is pickle",
    "yaml.load": "makes any object; safe_load does not",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes many objects",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "torch.hub.load": "runs a repository's code",
}
METHODS = {"extractall": "writes wherever an archive says", "extract": "writes wherever an archive says"}
# Read by torch itself; what is checked before is said there.
READERS = {"torch.export.load", "torch.jit.load", "torch._inductor.aoti_load_package"}
EXCEPTIONS = {
    ("export/program.py", "torch.export.load"): "every pickle in the archive is read with weights_only=True before",
    ("export/torchscript.py", "torch.jit.load"): "TorchScript's reader knows a few fixed classes",
    ("export/aoti.py", "torch._inductor.aoti_load_package"): "machine code by its nature, and its docstring says so",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offences(source: str, name: str) -> list[str]:
    """What a file must not call, with the line."""
    tree = ast.parse(source)
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {(a.asname or a.name): a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = dotted(node.func).partition(".")
        called = ".".join(filter(None, (aliases.get(first, first), rest)))
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        bad = (
            called in NEVER
            or method in METHODS
            or (called == "torch.load" and given.get("weights_only") is not True)
            or (called in ("numpy.load", "np.load") and given.get("allow_pickle") is not False)
            or given.get("shell", False) is not False
            or (called in READERS and (name, called) not in EXCEPTIONS)
        )
        if bad:
            found.append(f"{name}:{node.lineno}: {called or method}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_holds(path: Path) -> None:
    assert not offences(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())


def test_the_one_unpickler_imports_nothing_but_torchs_own_classes() -> None:
    using = [path for path in SOURCES if "Unpickler)" in path.read_text(encoding="utf-8")]
    assert [path.name for path in using] == ["_distributed_files.py"]
    from latephase.integrations._distributed_files import _Index

    for module, name in (("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.serialization", "load")):
        with pytest.raises(latephase.LatePhaseError, match="which no index of torch's does"):
            _Index(io.BytesIO()).find_class(module, name)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads as read\nread(f)",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.load(f)",
        "eval(text)",
        "exec(text)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import tarfile\ntarfile.open(x).extractall()",
        "import torch\ntorch.export.load(x)",
    ],
)
def test_it_is_noticed(source: str) -> None:
    assert offences(source, "made up")


def test_what_is_allowed_is_there() -> None:
    """An exception for a call that is gone would hide a new one."""
    for (name, called), reason in EXCEPTIONS.items():
        assert called in (ROOT / name).read_text(encoding="utf-8")
        assert reason
    assert not offences("import torch\ntorch.load(f, weights_only=True)\nmodel.eval()", "made up")

"""The wheel and the sdist, built, looked into and installed: `make package`, or `python tools/package.py`.

They are built twice, here through the sdist and from a copy of the repository's files alone, at another place and
time; both must come to the same bytes. Then the wheel is installed into a fresh environment, alone and with its extra,
with what uv.lock names. Exit code 1 and one line for the first thing that is wrong.
"""

import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# `uv run` says where it is; it need not be on the PATH.
UV = os.environ.get("UV", "uv")
OUT = ROOT / "dist"
# Bytes: about twice what they take now.
LIMITS = {".whl": 1_200_000, ".gz": 1_200_000}
KINDS = {".py", ".yaml", ".css", ".typed"}
BESIDE = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
TINY = ["--data.subset=48", "--data.validation=40", "--data.test_images=60", "--training.epochs=2", "--model.width=4"]


class PackageError(Exception):
    """What is wrong with the package."""


def require(holds: object, message: str) -> None:
    """Raise unless something holds."""
    if not holds:
        raise PackageError(message)


def run(*command: object, code: int = 0, cwd: Path = ROOT, **changes: str) -> str:
    """What a command prints, or its errors where it is to fail; it must end with a certain exit code."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env=clean | changes, capture_output=True, text=True, check=False)
    shown = done.stderr if code else done.stdout
    require(
        done.returncode == code,
        f"{' '.join(words)} ended with {done.returncode}, not {code}:\n{(done.stdout + done.stderr)[-3000:]}",
    )
    return shown


def tracked() -> set[str]:
    """The repository's files."""
    return set(run("git", "ls-files", "--", "src", *BESIDE).split())


def names_in(archive: Path) -> set[str]:
    """The files in a wheel, or in an sdist below its one folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as opened:
        return {member.name.partition("/")[2] for member in opened.getmembers()}


def check_names(names: set[str], sources: set[str], kind: str) -> None:
    """The archive holds the repository's files under src/, what belongs beside them, and nothing else.

    Args:
        names: in the wheel (kind ".whl") or the sdist (".gz").
        sources: the repository's files.
        kind: ".whl" or ".gz".
    """
    code = {name for name in sources if name.startswith("src/")}
    if kind == ".whl":
        code = {name.removeprefix("src/") for name in code}
        info = {name for name in names if re.match(r"latephase-[^/]+\.dist-info/", name)}
        short = {name.partition("/")[2] for name in info}
        want = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
        require(short == want, f"the wheel's metadata are {sorted(short)}, not {sorted(want)}")
        names = names - info
    else:
        code |= BESIDE
    require(names >= code, f"not in the {kind}: {sorted(code - names)[:5]}")
    require(names <= code, f"in the {kind}, but not of the repository: {sorted(names - code)[:5]}")
    strange = {name for name in names if "latephase/" in name and Path(name).suffix not in KINDS}
    require(not strange, f"of no known kind: {sorted(strange)[:5]}")
    for name in ("py.typed", "experiments/recipes/digits.yaml", "experiments/report/style.css"):
        require(any(entry.endswith(f"latephase/{name}") for entry in names), f"no {name} in the {kind}")


def check_metadata(wheel: Path) -> None:
    """Version, licence, typing and extras say what pyproject.toml says; no address is invented."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if name.endswith("/METADATA"))
        said = email.parser.Parser().parsestr(opened.read(name).decode())
    require(said["Version"] in wheel.name, f"the metadata say {said['Version']}, the wheel's name {wheel.name}")
    require(said["License-Expression"] == "Apache-2.0", f"licence {said['License-Expression']}")
    require("Typing :: Typed" in said.get_all("Classifier", []), "no classifier for types")
    plain = [need for need in said.get_all("Requires-Dist", []) if "extra ==" not in need]
    require(len(plain) == 1 and plain[0].startswith("torch"), f"the core needs {plain}, not torch alone")
    require(not said.get_all("Project-URL"), f"addresses that are not known to be true: {said.get_all('Project-URL')}")


def build() -> tuple[Path, Path]:
    """The wheel and the sdist in dist/, after both have been built a second time with the same bytes."""
    sources = tracked()
    shutil.rmtree(OUT, ignore_errors=True)
    when = {"SOURCE_DATE_EPOCH": run("git", "log", "-1", "--format=%ct").strip()}
    run(UV, "build", "--quiet", "--out-dir", OUT, **when)
    wheel, sdist = next(OUT.glob("*.whl")), next(OUT.glob("*.tar.gz"))
    for archive in (wheel, sdist):
        check_names(names_in(archive), sources, archive.suffix)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        for name in sources:
            copy.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
            copy.joinpath(name).chmod(0o600)
        # Not through the sdist, so that the sdist is seen to hold all that a wheel is made of.
        run(UV, "build", "--quiet", "--wheel", "--sdist", "--out-dir", Path(folder, "again"), cwd=copy, **when)
        for first in (wheel, sdist):
            again = Path(folder, "again", first.name)
            require(
                again.read_bytes() == first.read_bytes(), f"{first.name} comes to other bytes when it is built again"
            )
    return wheel, sdist


def install(folder: Path, *what: str) -> Path:
    """A fresh environment with the package and what uv.lock names; its folder of programs."""
    locked = folder.with_suffix(".txt")
    run(
        UV,
        "export",
        "--frozen",
        "--quiet",
        "--all-extras",
        "--no-default-groups",
        "--no-emit-project",
        "--no-hashes",
        "-o",
        locked,
    )
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    programs = folder / "bin"
    run(UV, "pip", "install", "--quiet", "--python", programs / "python", "--constraints", locked, *what)
    return programs


def check_core(wheel: Path, folder: Path) -> None:
    """With torch alone: it imports quietly, the README's first example runs, and a command says what it lacks."""
    programs = install(folder / "core", str(wheel))
    version = wheel.name.split("-")[1]
    has = run(UV, "pip", "list", "--python", programs / "python").lower()
    require("numpy" not in has and "lightning" not in has, "the core brings more than torch")
    run(programs / "python", "-W", "error::DeprecationWarning", "-c", "import latephase", cwd=folder)
    example = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    run(programs / "python", "-c", example, cwd=folder)
    require(run(programs / "latephase", "--version").strip() == f"latephase {version}", "--version says something else")
    require(
        f"torch {has.split('torch ')[1].split()[0]}" in run(programs / "latephase", "version"),
        "version does not say torch's",
    )
    said = run(programs / "latephase", "demo", code=2, cwd=folder)
    require("pip install 'latephase[experiments]'" in said, f"demo without its extra says: {said}")


def check_experiments(wheel: Path, folder: Path) -> None:
    """With the extra: the recipes that it ships are listed, and one trains."""
    programs = install(folder / "experiments", f"latephase[experiments] @ file://{wheel}")
    require(
        "digits-noisy" in run(programs / "latephase", "recipes", cwd=folder, COLUMNS="200"), "no recipe digits-noisy"
    )
    run(programs / "latephase", "train", "digits-noisy", *TINY, "--output=run", cwd=folder, OMP_NUM_THREADS="1")
    require(next(folder.glob("run/**/model.safetensors"), None), "training left no model.safetensors")


def main() -> int:
    """Build, check, install."""
    try:
        wheel, sdist = build()
        for archive in (wheel, sdist):
            size = archive.stat().st_size
            require(size < LIMITS[archive.suffix], f"{archive.name} takes {size} bytes")
            sys.stdout.write(f"package: {archive.name}: {size} bytes, {len(names_in(archive))} files\n")
        check_metadata(wheel)
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        with tempfile.TemporaryDirectory() as folder:
            check_core(wheel, Path(folder))
            check_experiments(wheel, Path(folder))
    except PackageError as error:
        sys.stderr.write(f"package: error: {error}\n")
        return 1
    sys.stdout.write("package: the same bytes twice; installs with torch alone and with [experiments]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

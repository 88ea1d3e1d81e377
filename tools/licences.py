"""Licences of every locked package that this machine needs: `make licences`, or `python tools/licences.py`.

pip-licenses reads what the installed packages say of themselves; `supply_chain.toml` says what is allowed, and what
packages without a clear word are under. The core's packages are judged apart from the extras' and the development's.
Exit code 1: something is not allowed, is unknown, or stands in the list without need.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from boolean.boolean import ParseError
from license_expression import ExpressionError, get_spdx_licensing
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# `uv run` says where it is; it need not be on the PATH.
UV = os.environ.get("UV", "uv")
SPDX = get_spdx_licensing()
# What each part adds to those before it.
PARTS = {"core": [], "extras": ["--all-extras"], "development": ["--all-extras", "--all-groups"]}


def needed(*options: str) -> set[str]:
    """Names of the locked packages that this platform and Python need."""
    plain = [
        "--frozen",
        "--quiet",
        "--no-default-groups",
        "--no-emit-project",
        "--no-hashes",
        "--no-annotate",
        "--no-header",
    ]
    done = subprocess.run([UV, "export", *plain, *options], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [Requirement(line) for line in done.stdout.splitlines() if line]
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate()}


def stated(package: dict[str, str], spelled: dict[str, str]) -> str | None:
    """The SPDX expression that a package's own metadata amount to.

    Args:
        package: pip-licenses' `License-Expression`, `License-Metadata` and `License-Classifier`.
        spelled: other ways to write SPDX's names.
    """
    for text in (package["License-Expression"], package["License-Metadata"], package["License-Classifier"]):
        text = spelled.get((text.strip().splitlines() or ["UNKNOWN"])[0], text.strip())
        try:
            strange = [name for name in SPDX.unknown_license_keys(text) if not name.startswith("LicenseRef-")]
        except (ExpressionError, ParseError):
            continue
        if text and text != "UNKNOWN" and not strange:
            return SPDX.parse(text).render()
    return None


def permitted(expression: str, allowed: set[str]) -> bool:
    """Whether all that an expression demands, of what it offers one, is allowed."""
    parsed = SPDX.parse(expression)
    verdicts = {symbol: SPDX.TRUE if symbol.render() in allowed else SPDX.FALSE for symbol in parsed.symbols}
    return parsed.subs(verdicts, simplify=True).simplify() == SPDX.TRUE


def judge(part: str, packages: list[dict[str, str]], rules: dict) -> tuple[list[str], Counter[str], set[str]]:
    """What is wrong, how many packages are under each licence, and which entries read by hand were of use.

    Args:
        part: "core", "extras" or "development".
        packages: of pip-licenses.
        rules: the table `licences` of supply_chain.toml.
    """
    allowed = {*rules["allowed"], *(name for name, rule in rules["allowed_in"].items() if part in rule["parts"])}
    wrong, counted, used = [], Counter(), set()
    for package in packages:
        name, expression = canonicalize_name(package["Name"]), stated(package, rules["spelled"])
        if expression is None and name in rules["read_by_hand"]:
            used.add(name)
            expression = rules["read_by_hand"][name]["licence"]
        if expression is None:
            said = package["License-Metadata"].splitlines()[0][:60]
            wrong.append(
                f"{name} {package['Version']}: no SPDX licence in its metadata ({said!r}); read it, and add it by hand"
            )
            continue
        counted[expression] += 1
        if not permitted(expression, allowed):
            wrong.append(f"{name} {package['Version']}: {expression} is not allowed in {part}")
    return wrong, counted, used


def main() -> int:
    """Judge what is installed in this environment."""
    rules = tomllib.loads((ROOT / "tools/supply_chain.toml").read_text())["licences"]
    options = ["--python", sys.executable, "--from=all", "--format=json", "--with-system"]
    done = subprocess.run(
        [Path(sys.executable).parent / "pip-licenses", *options], capture_output=True, text=True, check=True
    )
    installed = {canonicalize_name(package["Name"]): package for package in json.loads(done.stdout)}
    seen: set[str] = set()
    used: set[str] = set()
    wrong = []
    for part, chosen in PARTS.items():
        names = needed(*chosen) - seen
        seen |= names
        wrong += [f"{name}: not installed; run make env" for name in sorted(names - set(installed))]
        found, counted, by_hand = judge(part, [installed[name] for name in sorted(names & set(installed))], rules)
        wrong += found
        used |= by_hand
        kinds = ", ".join(f"{number} {licence}" for licence, number in counted.most_common())
        sys.stdout.write(f"{part}: {len(names)} packages: {kinds}\n")
    unused = sorted(set(rules["read_by_hand"]) - used)
    wrong += [f"{name}: read by hand without need; take it off the list" for name in unused]
    sys.stderr.write("".join(f"licences: {line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

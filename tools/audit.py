"""Known vulnerabilities of every package in uv.lock: `make audit`, or `python tools/audit.py [--service osv]`.

pip-audit asks PyPI, or OSV, for each release that the lock names, for every platform and Python version. It passes over
a release that the service has no page of, and over everything when the service keeps no vulnerabilities, and calls both
a success. So a release that is known to be vulnerable is asked for too: when nothing is known against that one, nothing
was audited. Exit code 0: nothing is known against any; 1: something is, or an entry of the list of the ignored is out
of date; 3: the service could not be asked about some of them or about any.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def locked(lock: dict) -> list[str]:
    """Every release from a package index that a lock names, as `name==version`."""
    return [f"{p['name']}=={p['version']}" for p in lock["package"] if "registry" in p["source"]]


def once_each(releases: list[str]) -> list[list[str]]:
    """Parts in which no name stands twice: the lock has some packages in one version for each Python."""
    parts: list[dict[str, str]] = []
    for release in releases:
        name = release.partition("==")[0]
        part = next((part for part in parts if name not in part), None)
        if part is None:
            parts.append(part := {})
        part[name] = release
    return [list(part.values()) for part in parts]


def ask(releases: list[str], service: str) -> list[dict]:
    """What pip-audit says about each release; SystemExit with 3 when it says nothing at all."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(releases))
        file.flush()
        options = [
            "--no-deps",
            "--disable-pip",
            "--progress-spinner=off",
            "--format=json",
            f"--vulnerability-service={service}",
        ]
        command = [sys.executable, "-m", "pip_audit", *options, "-r", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.stderr.write(f"audit: the service {service} cannot be asked; nothing was audited. {last}\n")
        raise SystemExit(3) from None


def judge(answers: list[dict], control: list[dict], ignored: list[dict], service: str) -> tuple[int, list[str]]:
    """The exit code, and the lines that say why.

    Args:
        answers: pip-audit's `dependencies` for the lock.
        control: the same for the release that is known to be vulnerable.
        ignored: entries with `id`, `package`, `reason` and `since`.
        service: its name.
    """
    if not any(release.get("vulns") for release in control):
        return 3, [
            f"{service} knows nothing against {control[0]['name']} in a version that is known to be vulnerable: it"
            " keeps no vulnerabilities, or no pages of single releases. Nothing was audited."
        ]
    skipped = [release for release in answers if "skip_reason" in release]
    lines, met, bad = [], set(), 0
    for release in answers:
        for found in release.get("vulns", []):
            names = {found["id"], *found.get("aliases", [])}
            entry = next((e for e in ignored if e["id"] in names and e["package"] == release["name"]), None)
            what = f"{release['name']} {release['version']}: {found['id']}"
            if entry:
                met.add(entry["id"])
                lines.append(f"ignored since {entry['since']}: {what}: {entry['reason']}")
            else:
                bad += 1
                mended = ", ".join(found["fix_versions"]) or "no release yet"
                lines.append(f"{what}, mended in {mended}: {' '.join(found.get('description', '').split())[:200]}")
    stale = [entry for entry in ignored if entry["id"] not in met] if not skipped else []
    lines += [f"{entry['id']} of {entry['package']} is no longer met: take it off the list" for entry in stale]
    lines += [f"not audited: {release['skip_reason']}" for release in skipped]
    audited = len(answers) - len(skipped)
    lines.append(
        f"{audited} of {len(answers)} locked releases audited with {service}: {bad} vulnerabilities, {len(met)} ignored"
    )
    return 1 if bad or stale else 3 if skipped else 0, lines


def main() -> int:
    """Audit the lock of this repository."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    service = parser.parse_args().service
    settings = tomllib.loads((ROOT / "tools/supply_chain.toml").read_text())["audit"]
    control = ask([settings["control"]], service)
    parts = once_each(locked(tomllib.loads((ROOT / "uv.lock").read_text())))
    answers = [answer for part in parts for answer in ask(part, service)]
    code, lines = judge(answers, control, settings.get("ignored", []), service)
    (sys.stderr if code else sys.stdout).write("".join(f"audit: {line}\n" for line in lines))
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Put the uv program into a folder, with nothing but python3 and a package index: `python3 tools/get_uv.py .uv`.

Debian's python3 comes without pip and without ensurepip, so this reads the index itself: it looks up uv's wheel for
this machine, checks its sha256, and unpacks the one program. The index is UV_INDEX_URL or PIP_INDEX_URL, else PyPI.
"""

import hashlib
import html.parser
import io
import os
import pathlib
import platform
import re
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(href)


def _fetch(url):
    with urllib.request.urlopen(url, timeout=180) as answer:
        return answer.read()


def _wheel(index):
    """Address of the newest wheel of uv for this machine."""
    page = urllib.parse.urljoin(index.rstrip("/") + "/", "uv/")
    links = _Links()
    links.feed(_fetch(page).decode())
    machine = platform.machine()
    pattern = re.compile(rf"/uv-(\d+)\.(\d+)\.(\d+)-py3-none-manylinux[^/]*_{machine}[^/]*\.whl(#|$)")
    versions = [(tuple(map(int, m.groups()[:3])), link) for link in links.found if (m := pattern.search("/" + link))]
    if not versions:
        raise SystemExit(f"get_uv: {page} lists no wheel of uv for Linux on {machine}; install uv by hand")
    return urllib.parse.urljoin(page, max(versions)[1])


def _unpack(folder):
    index = os.environ.get("UV_INDEX_URL") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    address, _, digest = _wheel(index).partition("#sha256=")
    content = _fetch(address)
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"get_uv: {address} does not have the sha256 that the index states; nothing was installed")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith("/scripts/uv"))
        program = folder / "bin" / "uv"
        program.parent.mkdir(parents=True, exist_ok=True)
        beside = program.with_suffix(".part")
        beside.write_bytes(wheel.read(name))
        beside.chmod(0o755)
        beside.rename(program)


def main(folder):
    """Use pip where there is one, since it knows the machine's own settings; else unpack the wheel."""
    try:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, **quiet)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
        subprocess.run(pip, check=True, **quiet)
    except (OSError, subprocess.CalledProcessError):
        _unpack(folder)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

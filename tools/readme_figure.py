"""The README's figure, from the results of `make demo`: `python tools/readme_figure.py RESULTS.json FIGURE.svg`.

Draws every setting's paired differences to plain SGD side by side, to one scale, for light and dark pages.
"""

import json
import re
import sys
from html import escape
from importlib.resources import files
from pathlib import Path

from latephase.experiments.report.figures import differences_figure, differences_range

WIDTH, TITLE = 400, 34


def _size(svg: str) -> tuple[float, float]:
    _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    return width, height


def _colours() -> str:
    """The report's own colours, light and dark."""
    css = (files("latephase.experiments.report") / "style.css").read_text()
    blocks = re.findall(r"(@media \(prefers-color-scheme: dark\)\s*\{\s*)?:root\s*\{([^}]*)\}", css)
    light = next(body for dark, body in blocks if not dark)
    dark = next(body for dark, body in blocks if dark)
    names = re.compile(r"--[\w-]+:\s*[^;]+;")
    return (
        f"svg {{ {' '.join(names.findall(light))} }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {' '.join(names.findall(dark))} }} }} "
        "text { font-family: system-ui, sans-serif; }"
    )


def draw(results: dict) -> str:
    """One SVG document."""
    settings = results["settings"]
    limits = differences_range(settings)
    parts, bottom = [], 0.0
    for column, setting in enumerate(settings):
        inner = differences_figure(setting, f"setting{column}", limits)
        width, height = _size(inner)
        scaled = height * WIDTH / width
        title = f"{setting['title']} · {setting['recipe']['seeds']} seeds"
        place = f'<svg x="{column * WIDTH}" y="{TITLE}" width="{WIDTH}" height="{scaled:.0f}"'
        parts.append(
            f'<text x="{column * WIDTH + 12}" y="22" font-size="14" font-weight="600" fill="var(--ink)">'
            f"{escape(title)}</text>" + inner.replace("<svg", place, 1)
        )
        bottom = max(bottom, TITLE + scaled)
    total = WIDTH * len(settings)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {total} {bottom:.0f}" width="{total}" height="{bottom:.0f}"><style>{_colours()}</style>'
        f"{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text())))

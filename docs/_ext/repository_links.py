"""Links between files of the repository, as pages write them, lead somewhere on the site too.

`../results/digits` is a folder on a file browser and the page of its README here; a folder without a README has no
page, and is named instead. Links to single files need nothing: they become downloads.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
# Below the list of results, which is written for a file browser, their pages in the site's own navigation.
_EVERY_RESULT = """
```{toctree}
:hidden:
:glob:

*/README
```
"""


def rewritten(text: str, page: Path, built: set[Path]) -> str:
    """The text of a page with links to folders replaced.

    Args:
        text: Markdown.
        page: Where it lies.
        built: Files that are pages of the site.
    """

    def replace(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        path = (page.parent / target).resolve()
        if path.is_dir():
            if (path / "README.md").resolve() in built:
                return f"[{words}]({target.rstrip('/')}/README.md)"
            return words
        if path.name == "README.md" and path not in built:
            return words
        return match[0]

    return _LINK.sub(replace, text)


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    built = {Path(app.env.doc2path(each)).resolve() for each in app.env.found_docs}
    source[0] = rewritten(source[0], page, built)
    if name == "results/README":
        source[0] += _EVERY_RESULT


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the build."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}

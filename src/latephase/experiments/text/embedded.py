"""A text that needs no file: the topics of Python's own help."""

from __future__ import annotations

from pydoc_data.topics import topics

SOURCE = "the help topics of Python (pydoc_data.topics)"


def embedded_text() -> bytes:
    """English prose with code in it, which every CPython carries: what `help("topics")` shows.

    The topics follow one another by name. Several contain one another, so that of equal paragraphs only the first is
    kept: otherwise parts of a held-out text would stand in the training text. About 370 kB (374,153 bytes of 107
    distinct values in Python 3.11.7); the same on all machines with one release of Python, not across releases.

    Returns:
        The text in UTF-8.
    """
    paragraphs: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph)
    return "\n\n".join(text for words, text in paragraphs.items() if words).encode()

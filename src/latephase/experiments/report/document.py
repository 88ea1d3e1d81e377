"""What a report consists of, apart from how it is laid out: the page, the CSV files and the Markdown read the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


class Code(str):
    """Text that is set as code: commands, commits, files."""


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: What it says.
        kind: `lead` for the sentence that stands above everything else, `facts` for what is said in passing, or ``.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Points:
    """Sentences of equal rank.

    Attributes:
        sentences: The sentences.
    """

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A drawing with the numbers in it.

    Attributes:
        name: Names its CSV file and keeps its ids apart from those of others; unique in a document.
        title: What is drawn.
        svg: The drawing, an SVG element.
        caption: How to read it.
        heads: Names of the columns of its numbers.
        rows: Its numbers, one row for each mark.
    """

    name: str
    title: str
    svg: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Figures:
    """Figures side by side.

    Attributes:
        figures: The figures.
    """

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Finding:
    """A sentence, and beside it the figures that prove it.

    Attributes:
        sentence: What the figures show.
        figures: The figures.
        notes: Further sentences under the first.
    """

    sentence: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it lists.
        heads: Names of the columns.
        rows: Cells; the first of a row names it. A cell that ends with a star is one that excludes zero.
        note: How to read it.
        folded: Whether it opens only on demand.
        ours: First cells of the rows to set off.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False
    ours: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Listing:
    """Names and what they mean, in two columns.

    Attributes:
        entries: The pairs.
    """

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """Text to be copied, such as a recipe.

    Attributes:
        title: What it is.
        text: The text.
        open: Whether it is unfolded.
    """

    title: str
    text: str
    open: bool = False


@dataclass(frozen=True)
class Part:
    """A heading inside a section, which the contents list.

    Attributes:
        title: The heading.
    """

    title: str


Block = Text | Points | Figures | Finding | Table | Listing | Source | Part


@dataclass
class Section:
    """One entry of the contents.

    Attributes:
        title: Its heading.
        blocks: What it holds.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block | None) -> Section:
        """Append what is there.

        Args:
            *blocks: Blocks; None is passed over.

        Returns:
            The section.
        """
        self.blocks += [block for block in blocks if block is not None]
        return self


@dataclass
class Document:
    """A report.

    Attributes:
        title: Its title.
        facts: One line on when and where it was made.
        opening: What stands before the contents.
        sections: The sections.
    """

    title: str
    facts: str
    opening: Sequence[Block]
    sections: list[Section]

    def blocks(self) -> Iterator[Block]:
        """Every block, in order.

        Yields:
            Blocks of the opening and of all sections.
        """
        yield from self.opening
        for section in self.sections:
            yield from section.blocks

    def figures(self) -> Iterator[Figure]:
        """Every figure, in order.

        Yields:
            Figures.
        """
        for block in self.blocks():
            if isinstance(block, Figures | Finding):
                yield from block.figures

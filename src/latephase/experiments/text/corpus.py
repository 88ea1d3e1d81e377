"""A text as bytes: memory-mapped, split, and its bytes numbered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latephase.experiments.errors import ExperimentError
from latephase.experiments.text.embedded import SOURCE, embedded_text
from latephase.experiments.text.unpack import plain_file

# Of each part at least one byte is predicted from another.
_SHORTEST = 40
_CHUNK = 2**24


@dataclass(frozen=True, eq=False)
class Text:
    """A stretch of a corpus.

    Attributes:
        raw: Its bytes as they are, uint8, (N,); a view that takes no memory of its own.
        lookup: What each byte is numbered with, int64, (256,); -1 for bytes that the corpus does not have.
    """

    raw: Tensor
    lookup: Tensor

    def __len__(self) -> int:
        return len(self.raw)

    def tokens(self, part: Any) -> Tensor:
        """Some bytes, numbered.

        Args:
            part: A slice, or int64 positions of any shape.

        Returns:
            Tokens, int64, of the positions' shape.
        """
        return self.lookup[self.raw[part].long()]

    def to(self, device: torch.device) -> Text:
        """The text on a device: on the CPU the same memory-mapped view, on an accelerator a copy in its memory.

        Args:
            device: Where it is wanted.

        Returns:
            The text there.
        """
        return self if device.type == "cpu" else Text(self.raw.to(device), self.lookup.to(device))


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text of bytes, of which the first 90% are trained on, 5% validate and the last 5% test.

    In another process it is the same mapped file, not a copy.

    Attributes:
        raw: All bytes, uint8, (N,).
        source: Where they come from, for reports and error messages.
        path: The mapped file; None for the embedded text.
    """

    raw: Tensor
    source: str
    path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.raw) < _SHORTEST:
            raise ExperimentError(
                f"{self.source} has {len(self.raw)} bytes; a text that is split into 90%, 5% and 5% needs at least "
                f"{_SHORTEST}"
            )

    def __len__(self) -> int:
        return len(self.raw)

    def __reduce__(self) -> tuple:
        return _reopened, (self.path, self.source, len(self.raw))

    @cached_property
    def vocabulary(self) -> tuple[int, ...]:
        """The distinct bytes of the whole file, in order; the token of a byte is its place among them."""
        counts = sum(torch.bincount(chunk, minlength=256) for chunk in self.raw.split(_CHUNK))
        assert isinstance(counts, Tensor)
        return tuple(counts.nonzero().flatten().tolist())

    @cached_property
    def lookup(self) -> Tensor:
        """The token of every byte, int64, (256,); -1 for those that the file does not have."""
        table = torch.full((256,), -1)
        table[list(self.vocabulary)] = torch.arange(len(self.vocabulary))
        return table

    @property
    def train(self) -> Text:
        """The first 90% of the bytes."""
        return Text(self.raw[: self._end(90)], self.lookup)

    @property
    def validation(self) -> Text:
        """The 5% after them."""
        return Text(self.raw[self._end(90) : self._end(95)], self.lookup)

    @property
    def test(self) -> Text:
        """The last 5%."""
        return Text(self.raw[self._end(95) :], self.lookup)

    def encode(self, content: bytes) -> Tensor:
        """Number the bytes of another text.

        Args:
            content: The bytes.

        Returns:
            Tokens, int64, (N,).

        Raises:
            ExperimentError: If one of them does not occur in the corpus.
        """
        tokens = self.lookup[torch.tensor(list(content), dtype=torch.int64)]
        if len(unseen := (tokens < 0).nonzero()):
            offset = int(unseen[0])
            raise ExperimentError(
                f"byte {content[offset]:#04x} at offset {offset} is none of the {len(self.vocabulary)} bytes that "
                f"{self.source} is made of"
            )
        return tokens

    def decode(self, tokens: Tensor) -> bytes:
        """The bytes of tokens.

        Args:
            tokens: int64, (N,), from 0 to the size of the vocabulary - 1.

        Returns:
            The bytes.
        """
        return bytes(self.vocabulary[token] for token in tokens.tolist())

    def _end(self, percent: int) -> int:
        return len(self.raw) * percent // 100


def load_corpus(path: Path | str | None = None, cache: Path | None = None) -> Corpus:
    """Open a text.

    Args:
        path: enwik8 or any other file, plain, as .xz or as .zip; None takes the embedded text, the help topics of
            Python, some 370 kB (see `embedded_text`).
        cache: Folder that archives are unpacked to, once; None takes `cache_folder()`.

    Returns:
        The corpus; its bytes are memory-mapped.

    Raises:
        ExperimentError: If the file is missing, empty, too short, damaged or packed in another way.
    """
    if path is None:
        return _reopened(None, SOURCE)
    path = Path(path)
    if not path.exists():
        raise ExperimentError(f"there is no text {path}; without a file the text is {SOURCE}")
    if not path.is_file():
        raise ExperimentError(f"{path} is a folder; a text is one file, plain, .xz or .zip")
    return _reopened(plain_file(path, cache), str(path))


def _reopened(path: Path | None, source: str, size: int | None = None) -> Corpus:
    if path is None:
        return Corpus(torch.frombuffer(bytearray(embedded_text()), dtype=torch.uint8), source)
    there = path.stat().st_size
    if size is not None and there != size:
        raise ExperimentError(f"{path} had {size:,} bytes and now has {there:,}; it was changed during the run")
    if not there:
        raise ExperimentError(f"{source} is empty")
    # A private mapping: pages are read as they are needed, and shared by all processes.
    return Corpus(torch.from_file(str(path), shared=False, size=there, dtype=torch.uint8), source, path)

"""Text that a model writes, and bytes in a form that is safe to show."""

from __future__ import annotations

import unicodedata

import torch
from torch import Generator, Tensor, nn

from latephase.evaluation import in_use
from latephase.experiments.errors import ExperimentError
from latephase.experiments.text.corpus import Corpus


def generate(
    model: nn.Module,
    corpus: Corpus,
    prompt: bytes,
    length: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    window: int = 256,
) -> bytes:
    """Let a model go on from a beginning, character by character.

    Each character is drawn from softmax(logits / temperature), on the CPU and in float64, so that a seed draws the same
    on every device as far as the logits are the same.

    Args:
        model: Maps tokens and a state to logits and the next state. Where its attribute `recurrent` is true it reads
            each character once, else the last `window` characters for each. It is used in eval mode, under a late
            phase as the averaged model, and is afterwards as it was.
        corpus: The text whose bytes it knows.
        prompt: What it goes on from, at least one byte.
        length: Characters to write.
        temperature: 0 always takes the likeliest character.
        seed: What the characters are drawn with.
        window: Characters that a model without a state sees; at most the length it was trained with is best.

    Returns:
        What it wrote, without the prompt.

    Raises:
        ExperimentError: If the prompt is empty or has a byte that the corpus lacks, or a number makes no sense.
    """
    if not prompt:
        raise ExperimentError("an empty prompt has nothing to go on from; it needs at least one character")
    if not temperature >= 0:
        raise ExperimentError(f"temperature = {temperature} is not valid; it takes a number from 0")
    if length < 0 or window < 1:
        raise ExperimentError(f"length = {length}, window = {window}: nothing can be written with that")
    device = next(model.parameters()).device
    generator = Generator().manual_seed(seed)
    tokens = corpus.encode(prompt).tolist()
    carried = bool(getattr(model, "recurrent", False))
    read, state = tokens if carried else tokens[-window:], None
    with in_use(model):
        for _ in range(length):
            logits, state = model(torch.tensor([read], device=device), state)
            tokens.append(_draw(logits[0, -1], temperature, generator))
            read = tokens[-1:] if carried else tokens[-window:]
    return corpus.decode(torch.tensor(tokens[len(prompt) :], dtype=torch.int64))


def as_text(content: bytes) -> str:
    r"""Bytes as text that does nothing but be read.

    Args:
        content: Bytes, of which those that are not UTF-8 become the replacement character.

    Returns:
        Text in which line feeds are kept, other ASCII control characters are their pictures, and everything else that
        is no visible character, such as a change of the writing direction, is written as its code point.

    Example:
        >>> as_text(b"one\ttwo\n\x1b[31m")
        'one␉two\n␛[31m'
    """
    return "".join(_visible(c) for c in content.decode("utf-8", errors="replace"))


def _draw(logits: Tensor, temperature: float, generator: Generator) -> int:
    logits = logits.double().cpu()
    if temperature == 0:
        return int(logits.argmax())
    # Relative to the largest, which a small temperature would otherwise take to infinity.
    p = ((logits - logits.max()) / temperature).softmax(dim=0)
    return int(torch.multinomial(p, 1, generator=generator))


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n" or not unicodedata.category(character).startswith(("C", "Zl", "Zp")):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"

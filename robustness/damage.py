"""Ways in which a file is damaged: cut off, a bit flipped, a block zeroed, halves swapped."""

import random
from collections.abc import Iterator

PARTS, BLOCK = 64, 4096


def damages(raw: bytes, flips: int, seed: int, cuts: int = PARTS) -> Iterator[tuple[str, str, bytes]]:
    """Damaged copies of a file.

    Args:
        raw: its content.
        flips: how many copies with one flipped bit each, at places drawn without replacement if there are enough.
        seed: of the places.
        cuts: how many of the 64 truncations, evenly spread.

    Yields:
        The kind of damage, where it is, and the content; none is the content itself.
    """
    chance = random.Random(seed)
    for part in range(0, PARTS, max(1, PARTS // cuts)):
        yield "truncated", f"{part}/{PARTS}", raw[: len(raw) * part // PARTS]
    bits = 8 * len(raw)
    places = chance.sample(range(bits), flips) if flips <= bits else [chance.randrange(bits) for _ in range(flips)]
    for place in places:
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        yield "bit flipped", f"byte {place // 8} bit {place % 8}", bytes(changed)
    starts = range(0, len(raw), BLOCK)
    for start in chance.sample(starts, min(16, len(starts))):
        zeroed = raw[:start] + bytes(min(BLOCK, len(raw) - start)) + raw[start + BLOCK :]
        if zeroed != raw:
            yield "block zeroed", f"byte {start}", zeroed
    half = len(raw) // 2
    yield "halves swapped", "", raw[half:] + raw[:half]

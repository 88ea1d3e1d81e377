"""Streams and windows of a text: what they tile, that a number says it all, and what held-out text counts."""

import pytest
import torch
from torch import Tensor

from latephase.experiments.errors import ExperimentError
from latephase.experiments.text import Streams, Text, Windows, held_out
from latephase.experiments.text.held_out import UNSCORED

CPU = torch.device("cpu")


def scattered(n: int) -> Text:
    """A text whose tokens are not its bytes."""
    return Text((torch.arange(n) * 37 % 199).to(torch.uint8), 255 - torch.arange(256))


def plain(n: int) -> Text:
    assert n <= 256
    return Text(torch.arange(n, dtype=torch.uint8), torch.arange(256))


@pytest.mark.parametrize(("n", "batch", "length"), [(101, 4, 5), (100, 4, 5), (61, 3, 4), (21, 1, 7), (9, 2, 4)])
def test_streams_tile_the_text_exactly_once(n: int, batch: int, length: int) -> None:
    text = plain(n)
    streams = Streams(text, batch, length, CPU)
    assert streams.per_epoch == (n - 1) // (batch * length)
    predicted: list[int] = []
    for row in range(batch):
        for step in range(streams.per_epoch):
            x, y, fresh = streams.at(step)
            assert x.shape == y.shape == (batch, length)
            assert fresh == (step == 0)
            assert torch.equal(y, x + 1)
            predicted += y[row].tolist()
    # Row after row, window after window: the text in order, from its second character on.
    assert predicted == list(range(1, len(predicted) + 1))
    assert n - 1 - len(predicted) < batch * length


def test_streams_are_read_anew_every_epoch_and_need_no_state() -> None:
    streams = Streams(scattered(1000), 3, 10, CPU)
    again = Streams(scattered(1000), 3, 10, CPU)
    for step in (0, 7, 40, 33 * 5 + 2):
        x, y, fresh = streams.at(step)
        other = again.at(step % streams.per_epoch)
        assert torch.equal(x, other[0])
        assert torch.equal(y, other[1])
        assert fresh == other[2] == (step % 33 == 0)


def test_tokens_are_looked_up() -> None:
    text = Text(
        torch.tensor([7, 9, 7, 200, 9], dtype=torch.uint8), torch.full((256,), -1).index_fill_(0, torch.tensor([7]), 0)
    )
    text.lookup[[9, 200]] = torch.tensor([1, 2])
    x, y, _ = Streams(text, 2, 2, CPU).at(0)
    assert x.tolist() == [[0, 1], [0, 2]]
    assert y.tolist() == [[1, 0], [2, 1]]
    assert x.dtype == y.dtype == torch.int64


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_the_members_streams_read_the_text_once_in_an_epoch_together(members: int) -> None:
    streams = Streams(plain(241), 2, 8, CPU)
    assert streams.per_epoch == 15
    read: list[int] = []
    for k in range(members):
        own = streams.of_member(k, members, begin=4)
        first = (4 + k * 15 // members) % 15
        assert torch.equal(own.at(0)[0], streams.at(first)[0])
        assert own.at(0)[2]
        turns = len(range(k, 15, members))
        for turn in range(turns):
            x, _, fresh = own.at(turn)
            assert fresh == (turn == 0 or (first + turn) % 15 == 0)
            read += x.flatten().tolist()
    assert len(set(read)) >= 240 - 16 * (members - 1)
    if 15 % members == 0:
        assert sorted(read) == list(range(240))


def test_windows_lie_anywhere_and_follow_from_seed_and_number() -> None:
    text = plain(30)
    windows = Windows(text, 2, 7, 3, CPU)
    assert windows.per_epoch == 2
    begins = set()
    for step in range(300):
        x, y, fresh = windows.at(step)
        assert fresh
        assert torch.equal(y, x + 1)
        assert torch.equal(x - x[:, :1], torch.arange(7).expand(2, 7))
        begins |= set(x[:, 0].tolist())
    # The last one predicts the last character.
    assert begins == set(range(23))
    assert torch.equal(windows.at(17)[0], Windows(text, 2, 7, 3, CPU).at(17)[0])
    assert not torch.equal(windows.at(17)[0], Windows(text, 2, 7, 4, CPU).at(17)[0])


@pytest.mark.parametrize("make", [lambda t: Streams(t, 4, 25, CPU), lambda t: Windows(t, 4, 25, 0, CPU)])
def test_a_text_shorter_than_a_minibatch_is_refused_with_what_it_needs(make) -> None:
    assert make(plain(101)).per_epoch == 1
    with pytest.raises(ExperimentError, match=r"has 100 bytes; training.batch_size = 4 streams of 25 .* at least 101"):
        make(plain(100))


def predictions(batches) -> list[tuple[int, int]]:
    """Scored pairs of a character and the one predicted from it."""
    found: list[tuple[int, int]] = []
    for x, y in batches:
        assert x.shape == y.shape
        assert bool((x >= 0).all())
        counts = y != UNSCORED
        found += zip(x[counts].tolist(), y[counts].tolist(), strict=True)
    return found


@pytest.mark.parametrize("n", [2, 3, 50, 100, 101, 256])
@pytest.mark.parametrize(("batch", "length", "context"), [(1, 8, 4), (3, 7, 0), (8, 10, 5), (300, 9, 8), (2, 400, 1)])
def test_held_out_text_is_predicted_exactly_once(n: int, batch: int, length: int, context: int) -> None:
    pairs = predictions(held_out(plain(n), batch, length, context, CPU))
    assert sorted(pairs) == [(i, i + 1) for i in range(n - 1)]


def test_held_out_windows_give_every_character_its_context() -> None:
    for x, y in held_out(plain(203), 4, 20, 12, CPU):
        assert x.shape[1] == 20
        for begin, row in zip(x[:, 0].tolist(), y, strict=True):
            first = int((row != UNSCORED).nonzero()[0])
            assert first >= 12 or begin == 0


@pytest.mark.parametrize(
    ("n", "context", "message"),
    [(1, 0, "has nothing to predict"), (9, 4, "a window of 4 characters cannot read 4 of them before it is scored")],
)
def test_a_held_out_text_that_cannot_be_scored_is_refused(n: int, context: int, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        list(held_out(plain(n), 2, 4, context, CPU))


def test_minibatches_do_not_share_memory_with_the_text() -> None:
    text: Tensor = scattered(500).raw
    before = text.clone()
    streams = Streams(Text(text, torch.arange(256)), 2, 5, CPU)
    streams.at(0)[0].zero_()
    assert torch.equal(text, before)

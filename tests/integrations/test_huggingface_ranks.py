"""Trainer and Accelerate under DDP, two processes: equal to one process on both ranks' minibatches."""

import tempfile
from collections.abc import Iterator

import huggingface_ranks
import pytest
import torch
import torch.multiprocessing
from transformers_runs import furthest, plain_loop, state, vision_transformer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[dict]]:
    """Starts the two processes once for all tests of this file; `huggingface_ranks.py` says what they do."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            huggingface_ranks.work, (folder,), nprocs=huggingface_ranks.WORLD, start_method="spawn"
        )
        yield [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(huggingface_ranks.WORLD)]


def of(outcomes: list[dict], name: str) -> list:
    said = [outcome[name] for outcome in outcomes]
    for rank, word in enumerate(said):
        assert not (isinstance(word, str) and word.startswith("Traceback")), f"rank {rank}: {word}"
    return said


def minibatches(said: list[dict], parts: int = 1) -> list[list[list]]:
    """For every step, what each rank took for it."""
    ranks = [[one["batches"][i : i + parts] for i in range(0, len(one["batches"]), parts)] for one in said]
    steps = [list(step) for step in zip(*ranks, strict=True)]
    assert len(steps) == huggingface_ranks.STEPS
    return steps


@pytest.mark.parametrize(
    ("name", "weights", "start", "parts"),
    [
        ("same", ["norm", "head"], 3, 1),
        ("rank-one", ["rank-one"], 3, 1),
        ("accumulated", ["norm", "head"], 3, 2),
        ("accelerate before", ["norm", "head"], 2, 1),
        ("accelerate after", ["norm", "head"], 2, 1),
    ],
)
def test_two_ranks_equal_one_process(outcomes, name: str, weights: list[str], start: int, parts: int) -> None:
    """Both ranks train the member of the turn, each on its own minibatch."""
    said = of(outcomes, name)
    steps = [[batch for rank in step for batch in rank] for step in minibatches(said, parts)]
    late = plain_loop(vision_transformer(), steps, start, schedule=lambda _: None, members=3, weights=weights)
    expected = state(late.collapse())
    for one in said:
        assert furthest(one["state"], expected) <= 1e-11
        assert one.get("wrapped", "DistributedDataParallel") == "DistributedDataParallel"


@pytest.mark.parametrize(("name", "parts"), [("over ranks", 1), ("over ranks, accumulated", 2)])
def test_members_over_ranks_equal_one_process(outcomes, name: str, parts: int) -> None:
    """Before the start both ranks' minibatches make one step; after it each is a turn of its own."""
    said = of(outcomes, name)
    steps = minibatches(said, parts)
    together = [[batch for rank in step for batch in rank] for step in steps[:3]]
    apart = [rank for step in steps[3:] for rank in step]
    late = plain_loop(
        vision_transformer(), [*together, *apart], 3, schedule=lambda _: None, members=4, weights=["norm", "head"]
    )
    assert (late.rounds, late.turn) == (3, 0)
    expected = state(late.collapse())
    for one in said:
        assert furthest(one["state"], expected) <= 1e-11
        assert one["synchronised"]


@pytest.mark.parametrize("name", ["resumed", "resumed over ranks"])
def test_resumed_equals_uninterrupted(outcomes, name: str) -> None:
    """mosaicml/composer#2016 was found on two processes only: over two here too."""
    for one in of(outcomes, name):
        # Members over ranks: the sum of a resumed round is one rank's to carry on, and added up in another order.
        assert furthest(one["again"], one["through"]) <= (1e-12 if "over" in name else 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("uneven members", "3 members cannot be shared evenly by 2 ranks; use members=4"),
        ("statistics", "ddp_broadcast_buffers"),
        ("factors", "Trainer(callbacks=[...])"),
    ],
)
def test_what_cannot_work_is_refused_on_every_rank(outcomes, name: str, words: str) -> None:
    for said in of(outcomes, name):
        assert said.startswith("LatePhase")
        assert words in said

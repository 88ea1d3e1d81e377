"""Two processes equal one with the same minibatches: under DDP, and with the members over the ranks."""

import tempfile
from collections.abc import Iterator

import pytest
import torch
import torch.multiprocessing

import ranks
from cases import assert_same, plain_tensors, run_reference, tensors
from latephase.reference import Reference

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[dict]]:
    """Starts the two processes once for all tests of this file; `ranks.py` says what they do."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(ranks.work, (folder,), nprocs=ranks.WORLD, start_method="spawn")
        yield [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(ranks.WORLD)]


def of(outcomes: list[dict], name: str) -> list:
    """What each rank has to say; an exception of a rank fails the test that asks."""
    said = [outcome[name] for outcome in outcomes]
    for rank, word in enumerate(said):
        assert not (isinstance(word, str) and word.startswith("Traceback")), f"rank {rank}: {word}"
    return said


def by_reference(judge: Reference) -> dict[str, torch.Tensor]:
    found = {f"average.{name}": tensor for name, tensor in plain_tensors(judge.average()).items()}
    for k, member in enumerate(judge.members):
        found |= {f"{k}.{name}": tensor for name, tensor in tensors(member).items()}
    return found


def without_statistics(found: dict) -> dict:
    return {n: t for n, t in found.items() if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))}


@pytest.mark.parametrize("name", [name for name in ranks.scenarios() if name.startswith("same")])
def test_ddp_equals_one_process(outcomes, name: str) -> None:
    """Both ranks train the same member, each on half of the minibatch; attached before or after the wrapping."""
    case = ranks.SAME[int(name.split()[1])]
    _, _, judge = case.reference()
    for number, batch in enumerate(case.batches(case.start + ranks.TURNS, size=8)):
        if number == case.start:
            judge.start()
        halves = [ranks.half(batch, rank) for rank in range(ranks.WORLD)]
        judge.step(lambda m, halves=halves: sum(case.loss(part)(m) for part in halves) / len(halves))
    expected = by_reference(judge)
    for found in of(outcomes, name):
        if case.model == "bn_cnn":  # statistics are those of a rank's own halves; the fold depends on them
            found = {n: t for n, t in without_statistics(found).items() if not n.startswith("average.bn")}
            expected = {n: t for n, t in without_statistics(expected).items() if not n.startswith("average.bn")}
        assert_same(found, expected, 1e-11)


@pytest.mark.parametrize("wrap", ["plain", "views"])
def test_under_ddp_rank_0_has_the_statistics_of_its_halves(outcomes, wrap: str) -> None:
    (index,) = (i for i, case in enumerate(ranks.SAME) if case.model == "bn_cnn")
    case = ranks.SAME[index]
    _, _, judge = case.reference()
    for number, batch in enumerate(case.batches(case.start + ranks.TURNS, size=8)):
        if number == case.start:
            judge.start()
        mine, other = (ranks.half(batch, rank) for rank in range(ranks.WORLD))

        def loss(model, mine=mine, other=other):
            # rank 1 saw the other half, with statistics of its own
            theirs = {name: buffer.clone() for name, buffer in model.named_buffers()}
            logits = torch.func.functional_call(model, theirs, other[0])
            return (case.loss(mine)(model) + torch.nn.functional.cross_entropy(logits, other[1])) / 2

        judge.step(loss)
    assert_same(of(outcomes, f"same {index} {wrap} inside")[0], by_reference(judge), 1e-11)


@pytest.mark.parametrize("wrap", [None, "plain", "views"])
@pytest.mark.parametrize("index", range(len(ranks.SPREAD)))
def test_members_over_ranks_equal_one_process(outcomes, index: int, wrap: str | None) -> None:
    case = ranks.SPREAD[index]
    turns = 5 * case.members // ranks.WORLD
    expected = by_reference(run_reference(case, ranks.WORLD * turns))
    for found in of(outcomes, f"spread {index} {wrap}"):
        assert (found.pop("turn"), found.pop("rounds")) == (0, 5)
        assert_same(found, expected, 1e-11)


@pytest.mark.parametrize("index", range(len(ranks.SPREAD)))
def test_members_over_ranks_resume(outcomes, index: int) -> None:
    through, resumed = of(outcomes, f"spread {index} None"), of(outcomes, f"resumed {index}")
    for found, expected in zip(resumed, through, strict=True):
        # The resumed round's sum is one rank's to carry on, so that it is added up in another order.
        floats = {n for n, t in expected.items() if isinstance(t, torch.Tensor)}
        assert_same({n: found[n] for n in floats}, {n: expected[n] for n in floats}, 1e-13)
        assert (found["turn"], found["rounds"]) == (0, 5)


def test_all_ranks_hold_the_same(outcomes) -> None:
    for name in outcomes[0]:
        if name.startswith(("spread", "resumed")) or (name.startswith("same") and "3" not in name):
            first, second = of(outcomes, name)
            for key, value in first.items():
                assert value == second[key] if not isinstance(value, torch.Tensor) else torch.equal(value, second[key])


def test_gradient_accumulation_without_sync(outcomes) -> None:
    case = ranks.SAME[0]
    _, _, judge = case.reference()
    judge.start()
    for batch in case.batches(ranks.TURNS, size=8):
        judge.step(case.loss(batch))
    for found in of(outcomes, "no_sync"):
        assert_same(found, by_reference(judge), 1e-11)


def test_one_pass_for_all_members_under_ddp(outcomes) -> None:
    case = ranks.replace(ranks.SAME[0], start=0)
    _, _, judge = case.reference()
    judge.start()
    for batch in case.batches(6, size=8):
        judge.step(case.loss(batch))
    for found in of(outcomes, "one pass"):
        assert_same(found, by_reference(judge), 1e-11)


def test_modes_of_the_wrapper(outcomes) -> None:
    for facts in of(outcomes, "modes"):
        assert all(facts.values()), facts


@pytest.mark.parametrize("uneven", [False, True])
def test_statistics_are_pooled_over_the_ranks(outcomes, uneven: bool) -> None:
    for difference in of(outcomes, f"statistics {uneven}"):
        assert max(tensor.abs().max() for tensor in difference.values()) < 1e-12


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("different models", "6.weight"),
        ("different seeds", "seed"),
        ("uneven members", "3 members"),
        ("in place", "in_place"),
        ("synchronised gradients", "no_sync"),
        ("factors after wrapping", "wrap"),
    ],
)
def test_what_cannot_work_is_refused_on_every_rank(outcomes, what: str, words: str) -> None:
    for said in of(outcomes, what):
        assert said.startswith("LatePhase")
        assert words in said

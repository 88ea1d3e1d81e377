"""DistributedDataParallel and members over ranks on four processes; what does not divide evenly."""

import pytest
import torch

import data_parallel_ranks as ranks
from cases import assert_same, run_reference, tensors
from four_ranks import said_by
from places import SIZE, TURNS, judged
from test_distributed import by_reference
from zoo import inputs

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


@pytest.mark.parametrize("index", range(len(ranks.SAME)))
def test_ddp_on_four_equals_one_process(four_processes, index: int) -> None:
    case = ranks.SAME[index]
    expected = by_reference(judged(case, 4))
    found = said_by(four_processes, f"ddp {index}")
    assert_same(found[0], expected, 1e-11)
    if case.model != "bn_cnn":  # there the first rank's statistics are those that count
        for other in found[1:]:
            assert_same(other, expected, 1e-11)


@pytest.mark.parametrize("index", range(len(ranks.SPREAD)))
def test_members_over_four_ranks_equal_one_process(four_processes, index: int) -> None:
    case = ranks.SPREAD[index]
    expected = by_reference(run_reference(case, ranks.ROUNDS * case.members))
    for found in said_by(four_processes, f"over ranks {index}"):
        assert_same(found, expected, 1e-11)


def test_a_padded_sampler_gives_every_rank_as_many_minibatches(four_processes) -> None:
    case = ranks.Case(model="ln_mlp", optimizer="nesterov", start=0)
    _, _, judge = case.reference()
    judge.start()
    x, y = inputs(case.model, ranks.SAMPLES, case.dtype, seed=7)
    order = [*range(ranks.SAMPLES), 0, 1]
    for first in range(0, 12, 4):
        judge.step(case.loss((x[order[first : first + 4]], y[order[first : first + 4]])))
    for found in said_by(four_processes, "padded"):
        assert_same(found, by_reference(judge), 1e-11)


def test_uneven_inputs_under_join_are_refused_at_the_first_step(four_processes) -> None:
    for said in said_by(four_processes, "joined"):
        assert "same number of minibatches" in said


def test_synchronised_statistics_are_those_of_the_whole_minibatch(four_processes) -> None:
    """With these, data-parallel training of a BatchNorm network is that of one process."""
    case = ranks.SAME[1]
    _, _, judge = case.reference()
    for number, batch in enumerate(case.batches(case.start + TURNS, size=SIZE)):
        if number == case.start:
            judge.start()
        judge.step(case.loss(batch))
    x, _ = inputs(case.model, SIZE, case.dtype, seed=99)
    with torch.no_grad():
        output = judge.average().eval()(x)
    for found in said_by(four_processes, "synchronised"):
        assert found.pop("layers") == sum("running_mean" in name for name in tensors(case.plain()))
        torch.testing.assert_close(found.pop("output"), output, rtol=1e-10, atol=1e-10)
        assert_same(found, by_reference(judge), 1e-10)


def test_a_world_that_does_not_divide_the_members_is_refused(four_processes) -> None:
    for said in said_by(four_processes, "uneven members"):
        assert "6 members cannot be shared evenly by 4 ranks" in said

"""torch.distributed.checkpoint: saved on four ranks in the middle of a round, resumed on four, on two and on one."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import checkpoint_ranks as ranks
import latephase
from cases import Case, assert_same, run, run_reference, tensors, train
from four_ranks import said_by
from latephase.integrations.distributed_checkpoint import PhaseState
from places import TURNS, judged
from test_distributed import by_reference

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


@pytest.mark.parametrize(("index", "how", "then", "world"), ranks.RESUMED)
def test_resumed_equals_uninterrupted(four_processes, index, how: str, then: str, world: int) -> None:
    """Saved on four ranks; the minibatches stay the same, and of BatchNorm's statistics the first rank's count."""
    case = ranks.CASES[index]
    found = said_by(four_processes, f"loaded {index} {how} {then} {world}")
    assert len(found) == world
    for one in found:
        assert (one.pop("turn"), one.pop("rounds")) == divmod(TURNS, case.members)[::-1]
        assert one.pop("sharded") == (then == "sharded")
    expected = by_reference(judged(case, 4, change=(ranks.STOP, world)))
    for one in found:
        assert_same(one, expected, 1e-11)


def test_resumed_on_as_many_ranks_is_the_uninterrupted_run(four_processes) -> None:
    """Bit for bit."""
    resumed = said_by(four_processes, "loaded 0 sharded sharded 4")
    for found, expected in zip(resumed, said_by(four_processes, "saved 0 sharded"), strict=True):
        floats = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        assert_same(floats, expected)


@pytest.mark.parametrize("world", [2, 1])
def test_members_of_four_ranks_are_resumed_on_fewer(four_processes, world: int) -> None:
    expected = by_reference(run_reference(ranks.SPREAD, ranks.AFTER))
    for found in said_by(four_processes, "spread"):
        assert_same(found, expected, 1e-11)
    found = said_by(four_processes, f"gathered {world}")
    assert len(found) == world
    for one in found:
        assert (one.pop("turn"), one.pop("rounds")) == (0, 3)
        assert_same(one, expected, 1e-11)


def test_what_cannot_be_resumed_is_refused_with_what_to_do(four_processes) -> None:
    for said in said_by(four_processes, "refusals of a state"):
        assert "after 2 of 8 members" in said["world"]
        assert "save at the end of a round" in said["world"]
        assert "nothing under 'phase'" in said["key"]
        assert "8 members, this phase has 3" in said["members"]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_asking_for_the_optimizers_state_is_no_turn(mode: str) -> None:
    """torch.distributed.checkpoint steps an optimizer that has no states, such as plain SGD, to make it some."""
    case = Case(model="ln_mlp", optimizer="sgd", start=0)
    model, optimizer, late = run(case, 4)
    before = tensors(model)
    optimizer.zero_grad()
    getattr(model, mode)()
    get_optimizer_state_dict(model, optimizer)
    model.train()
    assert late.turn == 1
    assert_same(tensors(model), before)
    train(case, model, optimizer, case.batches(3, first=4))
    assert_same(dict(late.averaged_state_dict()), dict(run(case, 7)[2].averaged_state_dict()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("family", ["norm+head", "rank-one", "lora"])
@pytest.mark.parametrize("turns", [None, 0, 1, 4])
def test_without_any_ranks(tmp_path, family: str, turns: int | None) -> None:
    """In one process, of every phase of a life: before the start, at the start, in rounds; with factors too."""
    case = Case(model="ln_mlp", family=family, optimizer="nesterov", start=2)
    model, optimizer, late = case.attach(noise=0.1)
    train(case, model, optimizer, case.batches(case.start))
    if turns is not None:
        late.start()
        train(case, model, optimizer, case.batches(turns, first=case.start))
    dcp.save({"late": PhaseState(late)}, checkpoint_id=tmp_path, no_dist=True)
    fresh = case.attach(noise=0.1)[2]
    dcp.load({"late": PhaseState(fresh, tmp_path)}, checkpoint_id=tmp_path, no_dist=True)
    assert fresh.phase == late.phase
    one, other = late.state_dict(), fresh.state_dict()
    assert one.keys() == other.keys()
    assert_alike(one, other)


def assert_alike(one, other) -> None:
    """The same tree of tensors and numbers."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b)
    else:
        assert one == other


def test_a_path_that_is_no_checkpoint(tmp_path) -> None:
    late = Case(model="ln_mlp").attach()[2]
    with pytest.raises(latephase.LatePhaseValueError, match="no checkpoint"):
        PhaseState(late, tmp_path).state_dict()

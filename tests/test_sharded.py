"""FSDP2 on two and four processes equals one process with the same minibatches."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import sharded_ranks as ranks
from cases import Case, assert_same, plain_tensors, tensors
from four_ranks import said_by
from places import SIZE, TURNS, judged
from test_distributed import by_reference
from zoo import inputs

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]


@pytest.mark.parametrize("name", [name for name in ranks.scenarios() if re.match(r"sharded \d", name)])
def test_fsdp2_equals_one_process(four_processes, name: str) -> None:
    """Every member, its statistics and the average; attached before or after `fully_shard`, parts of unequal size."""
    _, index, world, _ = name.split()
    expected = by_reference(judged(ranks.SHARDED[int(index)], int(world)))
    for found in said_by(four_processes, name):
        assert_same(found, expected, 1e-11)


def test_eval_between_steps_leaves_no_stale_weights(four_processes) -> None:
    case = ranks.SHARDED[0]
    _, _, judge = case.reference()
    judge.start()
    for batch in case.batches(TURNS, size=SIZE):
        judge.step(case.loss(batch))
    x, _ = inputs(case.model, SIZE, case.dtype, seed=99)
    with torch.no_grad():
        outputs = torch.stack([member(x) for member in judge.members])
        expected = by_reference(judge) | {
            "output.average": judge.average()(x),
            "output.turn": outputs[judge.turn],
            "output.members": outputs,
        }
    for found in said_by(four_processes, "evaluated between"):
        assert_same(found, expected, 1e-11)


@pytest.mark.parametrize("clip", [False, True])
def test_gradient_accumulation_without_sync(four_processes, clip: bool) -> None:
    clipping = (lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1)) if clip else None
    case = replace(ranks.SHARDED[0], start=0)
    for found in said_by(four_processes, f"accumulated {clip}"):
        assert_same(found, by_reference(judged(case, 2, clip=clipping)), 1e-11)


def test_a_rank_parks_its_part(four_processes) -> None:
    """The parts of all ranks together are the members, each once, though no layer's size divides by four."""
    found = said_by(four_processes, "facts")
    assert sum(facts["parked"] for facts in found) == found[0]["entire"]
    assert min(facts["parked"] for facts in found) < found[0]["entire"] / 4


def test_the_average_is_each_ranks_own_business(four_processes) -> None:
    """Averages of parts need no communication, and nothing is copied: FSDP2's modules cannot be."""
    for facts in said_by(four_processes, "facts"):
        assert facts["communication of an average"] == 0
        assert "does not support deepcopy" in facts["deepcopy"]


def test_the_averaged_state_dict_is_sharded_like_the_model(four_processes) -> None:
    case = ranks.SHARDED[2]
    expected = sorted(name for name, _ in case.plain().named_parameters())
    for facts in said_by(four_processes, "facts"):
        assert facts["sharded keys"] == expected
        assert facts["keys"]
        assert facts["eval"]


def test_collapse_leaves_a_model_that_trains_on(four_processes) -> None:
    case = replace(ranks.SHARDED[2], start=0)
    expected = plain_tensors(judged(case, 4, turns=4).average())
    for facts in said_by(four_processes, "facts"):
        assert facts["collapsed"]
        assert facts["trains on"]
        assert facts["output"] < 1e-12
        assert_same(facts["plain"], expected, 1e-11)


@pytest.mark.parametrize("model", ["ln_mlp", "bn_cnn"])
def test_a_seed_means_the_same_noise(four_processes, model: str) -> None:
    for found in said_by(four_processes, f"noisy {model}"):
        assert_same(found["sharded"], found["plain"], 0.0 if model == "ln_mlp" else 1e-14)
        assert not torch.equal(
            found["plain"]["0.fc.weight" if model == "bn_cnn" else "0.6.weight"],
            tensors(Case(model=model).plain())["fc.weight" if model == "bn_cnn" else "6.weight"],
        )


@pytest.mark.parametrize("stop", [2, 4])
@pytest.mark.parametrize("index", [1, 2])
def test_resumed_from_a_file_equals_uninterrupted(four_processes, index: int, stop: int) -> None:
    """In the middle of a round, and bit for bit."""
    case = ranks.SHARDED[index]
    through = said_by(four_processes, f"sharded {index} 2 before")
    resumed = said_by(four_processes, f"resumed {index} {stop}")
    for found, expected in zip(resumed, through, strict=True):
        assert (found.pop("turn"), found.pop("rounds")) == divmod(TURNS, case.members)[::-1]
        assert_same(found, expected)


@pytest.mark.parametrize("what", ranks.REFUSALS)
def test_what_cannot_work_is_refused_on_every_rank(four_processes, what: str) -> None:
    for said in said_by(four_processes, what):
        assert said.startswith("LatePhaseError")
        assert ranks.REFUSALS[what] in said

"""Two processes of a Lightning trainer equal one plain loop: DDP, members over ranks, and fully_shard."""

import re
import tempfile
from collections.abc import Callable, Iterator

import lit_ranks
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from lit import OPTIMIZERS, assert_equal, network, optimizers, smooth, values
from lit_ranks import START, WORLD, half, samples
from torch import nn
from torch.nn.utils import clip_grad_norm_

import latephase

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]
STEPS = 3 * lit_ranks.SIZE


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[dict]]:
    # To import Lightning takes longer than all that the processes do; the server does it once for both.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["latephase.integrations.lightning"])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(lit_ranks.work, (folder,), nprocs=WORLD, start_method="forkserver")
        yield [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def of(outcomes: list[dict], name: str) -> list:
    said = [outcome[name] for outcome in outcomes]
    for rank, word in enumerate(said):
        assert not (isinstance(word, str) and word.startswith("Traceback")), f"rank {rank}: {word}"
    return said


def loop(
    net: nn.Module,
    steps: list,
    *,
    start: int = START,
    make: Callable = OPTIMIZERS["nesterov"],
    clip: float | None = None,
    seen: Callable[[int, latephase.LatePhase], None] | None = None,
    members: int = 3,
    **options,
) -> latephase.LatePhase:
    """The plain loop in one process; a step is a list of minibatches."""
    rules = make(net.parameters()) if callable(make) else make
    rules = rules if isinstance(rules, list) else [rules]
    late = latephase.LatePhase(net, members, **options)
    for rule in rules:
        late.optimizer(rule)
    for number, parts in enumerate(steps):
        if number == start:
            late.start()
        for rule in rules:
            rule.zero_grad()
        for x, y in parts:
            (F.cross_entropy(net(x), y) / len(parts)).backward()
        if clip is not None:
            clip_grad_norm_(net.parameters(), clip)
        for rule in rules:
            rule.step()
        if seen is not None:
            seen(number, late)
    return late


ALL = [[batch] for batch in samples(lit_ranks.SIZE)] * 3


@pytest.mark.parametrize("name", list(lit_ranks.OPTIONS))
def test_ddp_equals_the_plain_loop(outcomes, name: str) -> None:
    net = smooth()
    make = OPTIMIZERS["adamw" if name == "rank-one" else "nesterov"]
    loop(net, ALL, make=make, **lit_ranks.OPTIONS[name]).collapse()
    for found in of(outcomes, f"same {name}"):
        assert_equal(found, dict(net.state_dict()), 1e-11)


def test_accumulation_and_clipping_under_ddp(outcomes) -> None:
    net, data = smooth(), samples(lit_ranks.SIZE)
    # Lightning divides the last minibatch of an epoch by 2 too, though it is alone.
    parts = [data[i : i + 2] for i in range(0, len(data), 2)] * 3
    rule = OPTIMIZERS["nesterov"](net.parameters())
    late = latephase.LatePhase(net, 3)
    late.optimizer(rule)
    for number, part in enumerate(parts):
        if number == START:
            late.start()
        rule.zero_grad()
        for x, y in part:
            (F.cross_entropy(net(x), y) / 2).backward()
        clip_grad_norm_(net.parameters(), 0.1)
        rule.step()
    late.collapse()
    for found in of(outcomes, "accumulated and clipped"):
        assert_equal(found, dict(net.state_dict()), 1e-11)


def test_manual_optimization_under_ddp(outcomes) -> None:
    net = smooth()
    loop(net, ALL, make=optimizers(net, 2)).collapse()
    for found in of(outcomes, "by hand"):
        assert_equal(found, dict(net.state_dict()), 1e-11)


def test_the_ranks_start_together(outcomes) -> None:
    """The signal reads the mean loss of both."""
    net, signal = smooth(), latephase.StartSignal(3, STEPS)
    rule = OPTIMIZERS["nesterov"](net.parameters())
    for (x, y), *_ in ALL:
        rule.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        rule.step()
        if signal.update(loss, 0.05):
            break
    net = smooth()
    loop(net, ALL, start=signal.started).collapse()
    for found in of(outcomes, "auto"):
        assert found.pop("started") == signal.started
        assert_equal(found, dict(net.state_dict()), 1e-11)


@pytest.mark.parametrize("name", ["validated", "sharded"])
def test_validation_sees_the_average_under(outcomes, name: str) -> None:
    expected = {f"0.{n}": v for n, v in values(smooth()).items()}

    def seen(number: int, late: latephase.LatePhase) -> None:
        if (number + 1) % lit_ranks.SIZE == 0:
            late.model.eval()
            epoch = (number + 1) // lit_ranks.SIZE
            expected.update({f"{epoch}.{n}": v.detach().clone() for n, v in values(late.model).items()})
            late.model.train()

    net = smooth()
    loop(net, ALL, seen=seen, make=OPTIMIZERS["adamw" if name == "sharded" else "nesterov"]).collapse()
    for found in of(outcomes, name):
        assert_equal({n: v for n, v in found.items() if n in expected}, expected, 1e-11)
        assert not [n for n in found if n not in expected and name == "validated"]


@pytest.mark.parametrize("step", [9, 10])
def test_ddp_resumes_in_the_middle_of_a_round(outcomes, step: int) -> None:
    net = smooth()
    loop(net, ALL, make=OPTIMIZERS["adamw"], weights="rank-one").collapse()
    for found in of(outcomes, f"resumed {step}"):
        assert_equal(found["resumed"], found["whole"])
        assert_equal(found["whole"], dict(net.state_dict()), 1e-11)


@pytest.mark.parametrize("name", list(lit_ranks.SPREAD))
def test_members_over_ranks_equal_the_plain_loop(outcomes, name: str) -> None:
    """Before the start DDP averages the gradients of both minibatches; then each is a member's turn."""
    expected = spread(name)
    for found in of(outcomes, f"spread {name}"):
        assert_equal(floats(found), floats(expected), 1e-11)


def floats(found: dict) -> dict:
    return {name: value for name, value in found.items() if value.is_floating_point()}


def spread(name: str) -> dict:
    net, data = network(), samples(2 * lit_ranks.SIZE, seed=6) * 3
    rule = OPTIMIZERS["nesterov"](net.parameters())
    late = latephase.LatePhase(net, 4, **lit_ranks.SPREAD[name])
    late.optimizer(rule)
    norm = net[1]
    for step in range(STEPS):
        pair = data[2 * step : 2 * step + 2]
        if step < START:
            rule.zero_grad()
            before = {n: b.clone() for n, b in norm.named_buffers()}
            (F.cross_entropy(net(pair[0][0]), pair[0][1]) / 2).backward()
            mine = {n: b.clone() for n, b in norm.named_buffers()}
            norm.load_state_dict(before, strict=False)
            (F.cross_entropy(net(pair[1][0]), pair[1][1]) / 2).backward()
            norm.load_state_dict(mine, strict=False)  # those of the first rank
            rule.step()
            continue
        if step == START:
            late.start()
        for x, y in pair:
            rule.zero_grad()
            F.cross_entropy(net(x), y).backward()
            rule.step()
    late.collapse()
    return dict(net.state_dict())


def test_members_over_ranks_resume_in_the_middle_of_a_round(outcomes) -> None:
    for found, whole in zip(of(outcomes, "spread resumed"), of(outcomes, "spread norm+head"), strict=True):
        # The resumed round's sum is one rank's to carry on, so that it is added up in another order.
        assert_equal(floats(found), floats(whole), 1e-13)


def test_recomputed_statistics_are_those_of_all_ranks(outcomes) -> None:
    inputs = torch.cat([x for x, _ in samples(lit_ranks.SIZE)])
    for found in of(outcomes, "pooled"):
        hidden = F.linear(inputs, found["0.weight"], found["0.bias"])
        torch.testing.assert_close(found["1.running_mean"], hidden.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["1.running_var"], hidden.var(0), rtol=1e-12, atol=1e-12)


def test_fully_sharded_equals_the_plain_loop(outcomes) -> None:
    net = smooth()
    loop(net, ALL, make=OPTIMIZERS["adamw"]).collapse()
    for found in of(outcomes, "sharded"):
        assert_equal({name: found[name] for name in net.state_dict()}, dict(net.state_dict()), 1e-11)


# Lightning-AI/pytorch-lightning#21414: averages over time of sharded weights.
def test_fully_sharded_averages_over_time(outcomes) -> None:
    taken = []

    def seen(number: int, late: latephase.LatePhase) -> None:
        if number + 1 in (14, 21):
            taken.append(late.averaged_state_dict())

    loop(smooth(), ALL, make=OPTIMIZERS["adamw"], seen=seen)
    mean = {name: (value + taken[1][name]) / 2 for name, value in taken[0].items()}
    for name in ("sharded average", "sharded average resumed"):
        for found in of(outcomes, name):
            assert_equal({n: found[n] for n in mean}, mean, 1e-11)


@pytest.mark.parametrize("whole", [False, True], ids=["in pieces", "whole"])
def test_fully_sharded_resumes_in_the_middle_of_a_round(outcomes, whole: bool) -> None:
    names = smooth().state_dict()
    for found, through in zip(of(outcomes, f"sharded resumed {whole}"), of(outcomes, "sharded"), strict=True):
        assert_equal({n: found[n] for n in names}, {n: through[n] for n in names})


@pytest.mark.parametrize("what", list(lit_ranks.REFUSALS))
def test_what_cannot_work_is_refused_at_set_up_on_every_rank(outcomes, what: str) -> None:
    for said in of(outcomes, what):
        assert said.startswith("0 steps, LatePhase")
        assert re.search(lit_ranks.REFUSALS[what], said)


def test_the_halves_are_the_minibatch() -> None:
    batch = samples(1)[0]
    assert torch.equal(torch.cat([half(batch, rank)[0] for rank in range(WORLD)]), batch[0])

"""parallel(): one pass for all members equals the loop, and runs every convolution once per round."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cases
import latephase
from cases import OPTIMIZERS, RECURRENT, Case, assert_matches, assert_same, run, run_reference, tensors, train

# torch.vmap cannot run recurrent kernels, which test_recurrent_factors.py has a message for.
EVERY = [case for case in cases.EVERY if case.model not in RECURRENT]
PAIRS = [case for case in cases.PAIRS if case.model not in RECURRENT]

# torch.vmap has no rule for the CPU's fused attention: it says so, and runs it once per member.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def chunks(case: Case, rounds: int):
    """The loop's minibatches, K of them to a batch."""
    batches = list(case.batches(case.members * rounds, first=case.start))
    for r in range(rounds):
        part = batches[r * case.members : (r + 1) * case.members]
        yield torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])


def run_parallel(case: Case, rounds: int, reduction: str = "mean", **options):
    model, optimizer, late = case.attach(**options)
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    for x, y in chunks(case, rounds):
        optimizer.zero_grad()
        if reduction == "mean":
            F.cross_entropy(late.parallel(x), y).backward()
        else:  # the sum of the members' own losses
            (F.cross_entropy(late.parallel(x, reduction="sum"), y, reduction="sum") / 4).backward()
        optimizer.step()
    return model, optimizer, late


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_parallel_equals_the_reference(case: Case) -> None:
    _, _, late = run_parallel(case, 2)
    assert (late.turn, late.rounds) == (0, 2)
    assert_matches(late, run_reference(case, 6), 1e-9 if case.optimizer in ("adam", "adamw", "rmsprop") else 1e-11)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_a_summed_loss_in_parallel_equals_the_reference(case: Case) -> None:
    case = replace(case, optimizer="sgd")
    _, _, late = run_parallel(case, 1, reduction="sum")
    assert_matches(late, run_reference(case, 3), 1e-11)


@pytest.mark.parametrize("case", PAIRS[::5], ids=str)
def test_parallel_and_loop_rounds_mix(case: Case) -> None:
    model, optimizer, late = run(case, 3)
    x, y = next(chunks(replace(case, start=case.start + 3), 1))
    optimizer.zero_grad()
    F.cross_entropy(late.parallel(x), y).backward()
    optimizer.step()
    train(case, model, optimizer, case.batches(2, first=case.start + 6))
    assert_matches(late, run_reference(case, 8), 1e-9)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["norm", "norm+head", "parameters", "full", "rank-one", "hypernetwork"])
@pytest.mark.parametrize("model_name", ["bn_cnn", "wrn_10_1"])
def test_each_convolution_runs_once_per_round(model_name: str, family: str) -> None:
    case = Case(model=model_name, family=family)
    model, optimizer, late = run(case, 3)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    (x, y), second = chunks(case, 2)

    def round_of(x, y) -> Counter[str]:
        optimizer.zero_grad()
        with Count() as count:
            F.cross_entropy(late.parallel(x), y).backward()
            optimizer.step()
        return count.calls

    for batch in ((x, y), second):
        calls = round_of(*batch)
        assert calls["convolution"] == convolutions
        assert calls["convolution_backward"] == convolutions


def test_outputs_come_in_the_order_of_the_batch() -> None:
    case = Case(family="full", model="ln_mlp")
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=["full"], noise=0.3)
    late.start()
    x = torch.randn(12, 5, dtype=torch.float64)
    outputs = late.parallel(x)
    assert outputs.shape == (12, 3)
    for k in range(3):
        with late.member(k), torch.no_grad():
            torch.testing.assert_close(outputs[4 * k : 4 * k + 4].detach(), model(x[4 * k : 4 * k + 4]))


def test_trees_of_inputs_and_outputs() -> None:
    class Tree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x, *, scale):
            h = self.norm(x["a"]) * scale
            return {"logits": self.head(h), "h": [h]}

    model = Tree()
    late = latephase.LatePhase(model, members=2)
    late.start()
    out = late.parallel({"a": torch.randn(6, 4)}, scale=torch.rand(6, 1))
    assert out["logits"].shape == (6, 2)
    assert out["h"][0].shape == (6, 4)


def test_a_skipped_round_is_repeated() -> None:
    """Dropping the pass with zero_grad(), or no gradient at all, is no round."""
    case = Case(start=0)
    model, optimizer, late = case.attach()
    late.start()
    (x, y), *_ = chunks(case, 1)
    before = late.state_dict()["values"]["bn1.weight"]
    F.cross_entropy(late.parallel(x), y).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert (late.turn, late.rounds) == (0, 0)
    assert torch.equal(late.state_dict()["values"]["bn1.weight"], before)
    F.cross_entropy(late.parallel(x), y).backward()
    optimizer.step()
    assert (late.turn, late.rounds) == (0, 1)
    assert model.training


def error_state(late, model):
    return {**tensors(model), **{f"stack.{n}": t for n, t in late.state_dict()["values"].items()}}


def test_misuse_is_an_error_and_changes_nothing() -> None:
    case = Case(start=0)
    model, optimizer, late = case.attach()
    x, y = next(chunks(case, 1))
    with pytest.raises(latephase.LatePhaseError, match="start"):
        late.parallel(x)
    late.start()
    before = error_state(late, model)
    with pytest.raises(latephase.LatePhaseValueError, match=r"11.*3"):
        late.parallel(x[:11])
    with pytest.raises(latephase.LatePhaseValueError, match="reduction"):
        late.parallel(x, reduction="none")
    model.eval()
    with pytest.raises(latephase.LatePhaseError, match="eval"):
        late.parallel(x)
    model.train()
    assert_same(error_state(late, model), before)
    late.parallel(x)
    before = error_state(late, model)
    with pytest.raises(latephase.LatePhaseError, match="twice"):
        late.parallel(x)
    assert_same(error_state(late, model), before)
    optimizer.zero_grad()
    train(case, model, optimizer, [(x, y)])
    before = error_state(late, model)
    with pytest.raises(latephase.LatePhaseError, match="middle of a round"):
        late.parallel(x)
    assert_same(error_state(late, model), before)


def test_clipping_between_backward_and_step_is_refused() -> None:
    """The stacks' gradients are out of the reach of clip_grad_norm_(model.parameters()): say so, do not ignore it."""
    case = Case(start=0)
    model, optimizer, late = case.attach()
    late.start()
    x, y = next(chunks(case, 1))
    F.cross_entropy(late.parallel(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    before = error_state(late, model)
    with pytest.raises(latephase.LatePhaseError, match=r"clip|rescal|scal"):
        optimizer.step()
    assert_same(error_state(late, model), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_k_equal_members_and_batches_stay_equal(name: str) -> None:
    """With no noise and K times the same minibatch the members stay the same."""
    case = Case(optimizer=name, start=0)
    _, optimizer, late = case.attach()
    late.start()
    (x, y), *_ = case.batches(1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(late.parallel(torch.cat([x] * 3)), torch.cat([y] * 3)).backward()
        optimizer.step()
    for stack in late.state_dict()["values"].values():
        for row in stack[1:]:
            torch.testing.assert_close(row, stack[0], rtol=1e-9, atol=1e-9)


class Own(torch.optim.SGD):
    """An optimizer that is not torch's, and knows its parameters by what they are."""

    def step(self, closure=None):
        assert self.known >= {id(p) for group in self.param_groups for p in group["params"]}
        return super().step(closure)


@pytest.mark.parametrize("case", [Case(), Case("ln_mlp", "full"), Case("bn_cnn", "rank-one", gamma="mean")], ids=str)
def test_an_optimizer_of_ones_own_steps_the_models_own_parameters(case: Case, monkeypatch) -> None:
    def build(parameters, **options):
        optimizer = Own(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3, **options)
        optimizer.known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return optimizer

    judge = run_reference(case, 6)
    monkeypatch.setitem(OPTIMIZERS, "nesterov", build)
    _, optimizer, late = case.attach()
    optimizer.known |= {id(p) for p in late.late_parameters()}  # factors join the groups of their weights
    train(case, late.model, optimizer, case.batches(case.start))
    late.start()
    for x, y in chunks(case, 2):
        optimizer.zero_grad()
        F.cross_entropy(late.parallel(x), y).backward()
        optimizer.step()
    assert_matches(late, judge, 1e-11)

"""What late-phase training adds to a plain step, counted: operators and bytes, which no busy machine disturbs."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import latephase
from latephase import grouped_norm

OPTIMIZERS = {
    "sgd, foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, fused=True),
}
WAITS = ("_local_scalar_dense", "equal", "allclose", "is_nonzero", "item")  # what makes the host wait for a device
OURS = Counter({"_foreach_copy_": 2, "_foreach_add_": 1})  # park, bring in, add up


class Traffic(TorchDispatchMode):
    """Counts operators, the bytes of their tensor arguments, and the bytes of new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.allocated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **(kwargs or {}))
        self.calls[name] += 1
        self.bytes[name] += sum(t.nbytes for t in given)
        there = {t.untyped_storage().data_ptr() for t in given}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in there]
        self.allocated += sum(t.nbytes for t in made)
        return out


def network(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    blocks = [part for _ in range(layers) for part in (nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU())]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


class Training:
    """A model, its optimizer, and a phase or none."""

    def __init__(self, optimizer: str = "sgd, fused", members: int = 0, layers: int = 2) -> None:
        self.model = network(layers)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.batch = torch.randn(4, 3, 8, 8), torch.randint(4, (4,))
        self.step()
        self.late = None
        if members:
            self.late = latephase.LatePhase(self.model, members=members)
            self.late.optimizer(self.optimizer)
            self.started = self.count(self.late.start)

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.batch[0]), self.batch[1]).backward()
        self.optimizer.step()

    def round(self) -> None:
        """All members in one pass."""
        x, y = (torch.cat([part] * self.late.members) for part in self.batch)
        self.optimizer.zero_grad()
        F.cross_entropy(self.late.parallel(x), y).backward()
        self.optimizer.step()

    @staticmethod
    def count(work) -> Traffic:
        with Traffic() as traffic:
            work()
        return traffic


def waits(traffic: Traffic) -> int:
    return sum(traffic.calls[name] for name in WAITS)


def difference(one: Counter, other: Counter) -> dict[str, int]:
    return {name: one[name] - other[name] for name in sorted({*one, *other}) if one[name] != other[name]}


@pytest.mark.parametrize(("optimizer", "members"), [*((name, 3) for name in OPTIMIZERS), ("sgd, fused", 64)])
def test_a_turn_adds_three_operators_to_a_plain_step(optimizer: str, members: int) -> None:
    """Park, bring in, add up; the first turn of a round has nothing to add to. Whatever K is, and the optimizer."""
    plain, late = Training(optimizer), Training(optimizer, members)
    plain.step()
    expected = plain.count(plain.step)
    for turn in range(members):
        found = late.count(late.step)
        ours = OURS if turn else Counter({"_foreach_copy_": 2})
        # AdamW reads its count of steps on the host, one of every weight that steps.
        hosts = {name: value for name, value in found.calls.items() if name != "_local_scalar_dense"}
        theirs = {name: value for name, value in expected.calls.items() if name != "_local_scalar_dense"}
        assert difference(Counter(hosts), Counter(theirs)) == ours, turn
        assert found.calls["_local_scalar_dense"] <= expected.calls["_local_scalar_dense"]
        assert found.allocated <= expected.allocated


@pytest.mark.parametrize("members", [2, 64])
def test_a_turn_moves_one_members_values_and_adds_the_base_gradients(members: int) -> None:
    late = Training("sgd, fused", members)
    late.step()
    found = late.count(late.step).bytes
    own = sum(stack[0].nbytes for stack in late.late.state_dict()["values"].values())
    base = sum(p.nbytes for p in late.late.base_parameters())
    assert found["_foreach_copy_"] == 2 * 2 * own  # there and back, each from and to
    assert found["_foreach_add_"] == 2 * base


def test_the_values_in_the_counts_survive_the_copies() -> None:
    """BatchNorm's counts of batches travel among the weights, as bits."""
    late = Training(members=3)
    for _ in range(5):
        late.step()
    assert late.late.state_dict()["values"]["1.num_batches_tracked"].tolist() == [3, 3, 2]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_parallel_round_has_as_many_operators_for_any_number_of_members(optimizer: str, monkeypatch) -> None:
    """As on an accelerator; a CPU calls its BatchNorm once for each member."""
    monkeypatch.setattr(grouped_norm, "_way", lambda x: grouped_norm._Together)
    found = {}
    for members in (2, 10, 64):
        late = Training(optimizer, members)
        late.round()
        calls = late.count(late.round).calls
        # AdamW reads its count of steps on the host, one of every weight that steps, here all members'.
        calls.pop("_local_scalar_dense", None)
        found[members] = calls
    assert found[2] == found[10] == found[64]
    plain = Training(optimizer)
    assert found[2]["convolution"] == plain.count(plain.step).calls["convolution"] == 2


@pytest.mark.parametrize("optimizer", ["sgd, foreach", "sgd, fused", "adamw, fused"])
def test_no_step_makes_the_host_wait(optimizer: str) -> None:
    late = Training(optimizer, 3)
    for _ in range(3):
        assert waits(late.count(late.step)) == 0
    assert waits(late.count(late.round)) == 1  # has a scaler or clipping changed the gradients of one member?


def test_the_average_is_computed_once_for_each_update() -> None:
    late = Training(members=3)
    late.step()
    model = late.model
    assert late.count(model.eval).calls["mean"]
    later = [model.train, model.eval, model.state_dict, model.train, late.late.averaged_state_dict, model.eval]
    assert not any(late.count(work).calls["mean"] for work in later)
    model.train()
    late.step()
    assert late.count(model.eval).calls["mean"]


def test_what_is_written_past_autograd_renews_the_average() -> None:
    late = Training(members=3)
    late.step()
    model = late.model
    model.eval()
    before = model[-1].bias.clone()
    model.train()
    model[-1].bias.data.add_(3.0)
    model.eval()
    torch.testing.assert_close(model[-1].bias, before + 1.0)


def test_start_average_and_collapse_have_bounded_operators() -> None:
    """Whatever K is: but for the members' optimizer states, which are tensors of their own."""
    found = {}
    for members in (2, 10, 64):
        late = Training(members=members)
        assert late.started.calls.pop("clone") == members * 6  # momentum of 6 late-phase weights
        late.step()
        own = late.late.state_dict()["values"]
        counted = [late.count(work) for work in (late.model.eval, late.model.train, late.late.collapse)]
        found[members] = [late.started.calls, *(each.calls for each in counted)]
        assert all(sum(calls.values()) <= 12 * len(own) + 60 for calls in found[members])
        heaviest = max(sum(each.bytes.values()) for each in (late.started, *counted))
        assert heaviest <= 20 * sum(stack.nbytes for stack in own.values()) + 100_000
    assert found[2] == found[10] == found[64]


def test_layers_are_folded_together() -> None:
    """A deeper network has no more folds; every layer adds its counts, its views and its rounding."""
    found = []
    for layers in (1, 3):
        late = Training(members=3, layers=layers)
        late.step()
        found.append(late.count(late.model.eval).calls)
    for name in ("sort", "sqrt", "cat", "mul", "add"):
        assert found[0][name] == found[1][name], name


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("parallel", [False, True], ids=["loop", "parallel"])
def test_one_graph_without_breaks_over_all_rounds(parallel: bool) -> None:
    counter = CompileCounterWithBackend("eager")
    late, uncompiled = Training(members=3), Training(members=3)
    uncompiled.batch = late.batch
    if parallel:
        late.late.compile_parallel(backend=counter, fullgraph=True)
    else:
        late.model.compile(backend=counter, fullgraph=True)
    for training in (late, uncompiled):
        for _ in range(4):
            work = training.round if parallel else training.step
            work()
    assert counter.frame_count == 1
    assert not counters["graph_break"]
    compiled, eager = (training.late.averaged_state_dict() for training in (late, uncompiled))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-6, atol=1e-6)

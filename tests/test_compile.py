"""torch.compile: the same numbers as without it, and one compilation for all members, before and after the start."""

import shutil
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import latephase
from cases import Case, assert_same, tensors

# torch's own deprecations, raised while it traces, are not ours to answer for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

MODELS = ["bn_cnn", "ln_mlp", "transformer", "tied"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(case: Case) -> nn.Module:
    """The row's model; a cumulative average (momentum=None) breaks graphs in torch itself."""
    model = case.plain()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def trained(case: Case, wrap, when: str = "after", evaluate: bool = False):
    """Three minibatches, the start, three rounds; the loop calls what `wrap` makes of the model."""
    model = build(case)
    called = wrap(model) if when == "before" else None
    late = latephase.LatePhase(model, members=4, weights=case.weights(), noise=0.1)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    called = called if when == "before" else wrap(model)
    outputs = []
    for index, (x, y) in enumerate(case.batches(15)):
        if index == 3:
            late.start()
        optimizer.zero_grad()
        F.cross_entropy(called(x), y).backward()
        optimizer.step()
        if evaluate and index in (1, 5, 9):
            called.eval()
            with torch.no_grad():
                outputs.append(called(x))
            called.train()
    return late, model, outputs


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("model_name", MODELS)
def test_compiled_equals_eager_and_compiles_once(model_name: str, when: str) -> None:
    family = "norm" if model_name == "tied" else "norm+head"
    case = Case(model=model_name, family=family)
    counter = CompileCounterWithBackend("aot_eager")
    late, model, _ = trained(case, lambda m: torch.compile(m, backend=counter), when)
    expected, eager, _ = trained(case, lambda m: m)
    assert_same(tensors(model), tensors(eager), 1e-11)
    assert_same(dict(late.averaged_state_dict()), dict(expected.averaged_state_dict()), 1e-11)
    assert counter.frame_count == 1  # before the start, for every member, in every round


@pytest.mark.parametrize("family", ["norm+head", "full", "rank-one", "hypernetwork"])
def test_evaluation_adds_one_compilation(family: str) -> None:
    case = Case(family=family)
    counter = CompileCounterWithBackend("aot_eager")
    _, model, outputs = trained(case, lambda m: torch.compile(m, backend=counter), evaluate=True)
    _, eager, expected = trained(case, lambda m: m, evaluate=True)
    assert_same(tensors(model), tensors(eager), 1e-11)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert counter.frame_count == 2  # training and evaluation


def test_the_compiled_wrapper_is_attached_like_the_model() -> None:
    """LatePhase(torch.compile(model)): names without _orig_mod, eval() of the wrapper is the average.

    huggingface/pytorch-image-models#2693, Skovorp/feral#8: the prefix skipped every update.
    """
    case = Case()
    plain = case.plain()
    compiled = torch.compile(plain, backend="aot_eager")
    late = latephase.LatePhase(compiled, members=2)
    assert late.model is plain
    assert set(late.late_names()) == case.late_names()
    optimizer = late.optimizer(torch.optim.SGD(compiled.parameters(), lr=0.1))
    late.start()
    for x, y in case.batches(3):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
    average = late.averaged_state_dict()
    assert list(average) == list(case.plain().state_dict())
    compiled.eval()
    assert torch.equal(plain.fc.weight, average["fc.weight"])
    compiled.train()
    assert_same(
        dict(compiled.state_dict()),
        {f"_orig_mod.{name}": tensor for name, tensor in average.items()},
    )
    assert late.collapse() is compiled


def test_a_compiled_backward_after_the_member_changed_is_loud() -> None:
    case = Case()
    model = case.plain()
    compiled = torch.compile(model, backend="aot_eager")
    late = latephase.LatePhase(model, members=2, noise=0.3)
    late.start()
    (batch,) = case.batches(1)
    loss = F.cross_entropy(compiled(batch[0]), batch[1])
    model.eval()
    with pytest.raises(RuntimeError):
        loss.backward()


def test_the_exported_model_is_the_averaged_one() -> None:
    case = Case(model="ln_mlp")
    late, model, _ = trained(case, lambda m: m)
    plain = case.plain(seed=3)
    plain.load_state_dict(late.averaged_state_dict())
    (batch,) = case.batches(1, first=30)
    exported = torch.export.export(model.eval(), (batch[0],)).module()
    torch.testing.assert_close(exported(batch[0]), plain.eval()(batch[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_agrees_with_eager() -> None:
    case = Case(model="ln_mlp", dtype=torch.float32)
    counter = CompileCounterWithBackend("inductor")
    _, model, _ = trained(case, lambda m: torch.compile(m, backend=counter))
    _, eager, _ = trained(case, lambda m: m)
    assert_same(tensors(model), tensors(eager), 1e-5)
    assert counter.frame_count == 1


class Functional(nn.Module):
    """A model that the user compiles in part."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))


def test_a_compiled_part_sees_the_members() -> None:
    case = Case(model="ln_mlp")

    def run(compile_it: bool):
        torch.manual_seed(0)
        model = Functional().double()
        late = latephase.LatePhase(model, members=3, noise=0.2)
        if compile_it:
            model.norm.compile(backend="aot_eager")
        optimizer = late.optimizer(torch.optim.Adam(model.parameters(), lr=0.01))
        late.start()
        for x, y in case.batches(7):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return tensors(model)

    assert_same(run(True), run(False), 1e-11)

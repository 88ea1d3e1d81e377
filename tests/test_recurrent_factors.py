"""Factors beside recurrent weights: composed once a pass, for the kernels that torch uses."""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latephase
from cases import assert_same, tensors
from latephase import LatePhaseError, LatePhaseValueError, RankOne
from latephase.families.rank_one import RankOneFactors

CLASSES = 3
RECURRENT = [
    pytest.param(lambda: nn.LSTM(4, 5, batch_first=True), id="lstm"),
    pytest.param(lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3), id="lstm-deep"),
    pytest.param(lambda: nn.LSTM(4, 5, bias=False), id="lstm-without-bias"),
    pytest.param(lambda: nn.GRU(4, 5, num_layers=2, dropout=0.5), id="gru"),
    pytest.param(lambda: nn.GRU(4, 5, bidirectional=True), id="gru-bidirectional"),
    pytest.param(lambda: nn.RNN(4, 5, nonlinearity="relu"), id="rnn"),
]


class Reader(nn.Module):
    """Reads a sequence and names a class."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear((recurrent.proj_size or 5) * (1 + recurrent.bidirectional), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0]).mean(1 if self.recurrent.batch_first else 0)


def reader(make, seed: int = 0, dtype: torch.dtype = torch.float64) -> Reader:
    torch.manual_seed(seed)
    return Reader(make()).to(dtype)


def batches(count: int, recurrent: nn.RNNBase, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        x = torch.randn(6, 4, 4, generator=generator, dtype=dtype)
        size = 6 if recurrent.batch_first else 4
        yield x, torch.randint(CLASSES, (size,), generator=generator)


def attach(model: nn.Module, *weights, members: int = 3, noise: float = 0.0):
    late = latephase.LatePhase(model, members, weights or ["rank-one"], noise)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9))
    return late, optimizer


def train(model, optimizer, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("make", RECURRENT)
def test_a_member_is_the_plain_module_with_its_weights(make) -> None:
    model = reader(make)
    late, optimizer = attach(model, RankOne(), noise=0.3)
    names = [n for n, _ in make().named_parameters() if n.startswith("weight")]
    owners = {n.removeprefix("recurrent.parametrizations.").partition(".")[0] for n in late.late_names()}
    assert owners == {*names, "head"}
    late.start()
    train(model, optimizer, batches(5, model.recurrent))
    (batch,) = batches(1, model.recurrent)
    for content in (*range(3), None):
        with late.average() if content is None else late.member(content):
            twin = reader(make, seed=5).eval()
            with torch.no_grad():
                for name, parameter in twin.recurrent.named_parameters():
                    parameter.copy_(getattr(model.recurrent, name))
                twin.head.weight.copy_(model.head.weight)
                twin.head.bias.copy_(model.head.bias)
                actual, expected = model.recurrent.eval()(batch[0])[0], twin.recurrent(batch[0])[0]
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
                torch.testing.assert_close(model.eval()(batch[0]), twin(batch[0]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("make", RECURRENT)
def test_attachment_and_collapse_leave_an_ordinary_module(make) -> None:
    plain = reader(make).eval()
    model = reader(make)
    before = dict(model.recurrent.named_parameters())
    late, optimizer = attach(model)
    (batch,) = batches(1, model.recurrent)
    assert torch.equal(model.eval()(batch[0]), plain(batch[0]))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.train()
    late.start()
    train(model, optimizer, batches(4, model.recurrent))
    output, state = model.eval()(batch[0]), dict(late.averaged_state_dict())
    late.collapse()
    torch.testing.assert_close(model(batch[0]), output, rtol=1e-12, atol=1e-12)
    assert_same(dict(model.state_dict()), state)
    lstm = model.recurrent
    assert type(lstm) is type(plain.recurrent)
    assert [n for n, _ in lstm.named_parameters()] == [n for n, _ in plain.recurrent.named_parameters()]
    assert all(p is before[n] for n, p in lstm.named_parameters())
    assert [id(w) for w in lstm._flat_weights] == [id(getattr(lstm, n)) for n in lstm._flat_weights_names]
    assert vars(lstm).keys() == vars(plain.recurrent).keys()
    again, optimizer = attach(model)  # and another phase can follow
    train(model.train(), optimizer, batches(2, lstm))
    again.collapse()


def test_weights_are_composed_once_a_pass(monkeypatch) -> None:
    """Not once a time step, and not again when gradients flow or shapes are checked."""
    model = reader(lambda: nn.LSTM(4, 5, num_layers=2))
    late, optimizer = attach(model, RankOne(nn.LSTM))
    late.start()
    calls = []
    original = RankOneFactors.forward
    monkeypatch.setattr(RankOneFactors, "forward", lambda self, w: (calls.append(self), original(self, w))[1])
    train(model, optimizer, batches(1, model.recurrent))
    assert len(calls) == len(set(calls)) == 4


def test_nothing_of_a_pass_stays_in_the_module() -> None:
    model = reader(lambda: nn.LSTM(4, 5, num_layers=2))
    late, optimizer = attach(model)
    late.start()
    train(model, optimizer, batches(4, model.recurrent))
    held = [t for t in model.recurrent._flat_weights if isinstance(t, Tensor)]
    assert not held  # else the graph of the last pass would live on
    with pytest.raises(RuntimeError, match="input_size"):
        model.recurrent(torch.zeros(2, 2, 9).double())
    assert not [t for t in model.recurrent._flat_weights if isinstance(t, Tensor)]


def test_a_deepcopy_is_the_averaged_model_and_goes_its_own_way() -> None:
    model = reader(lambda: nn.LSTM(4, 5, batch_first=True))
    late, optimizer = attach(model)
    late.start()
    train(model, optimizer, batches(4, model.recurrent))
    twin = copy.deepcopy(model)
    (batch,) = batches(1, model.recurrent)
    expected = model.eval()(batch[0])
    assert torch.equal(twin.eval()(batch[0]), expected)
    train(twin.train(), torch.optim.SGD(twin.parameters(), lr=0.5), batches(3, model.recurrent))
    assert torch.equal(model(batch[0]), expected)
    assert not torch.allclose(twin.eval()(batch[0]), expected)


def test_the_model_may_move_and_cast_before_the_start() -> None:
    model = reader(lambda: nn.LSTM(4, 5, batch_first=True), dtype=torch.float32)
    late, _ = attach(model)
    model.double().cpu()
    plain = reader(lambda: nn.LSTM(4, 5, batch_first=True), dtype=torch.float32).double()
    (batch,) = batches(1, model.recurrent)
    late.start()
    assert torch.equal(model.eval()(batch[0]), plain.eval()(batch[0]))


def test_flatten_parameters_may_be_called_at_any_time_and_nobody_warns() -> None:
    """As models do that were run under DataParallel: in front of every forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = reader(lambda: nn.LSTM(4, 5, batch_first=True))
        late, optimizer = attach(model)
        late.start()
        for batch in batches(4, model.recurrent):
            model.recurrent.flatten_parameters()
            train(model, optimizer, [batch])
        model.recurrent.flatten_parameters()
        late.collapse()
        model.recurrent.flatten_parameters()


def test_weights_that_are_moved_into_one_buffer_train_the_same(monkeypatch) -> None:
    """What `flatten_parameters` does for cuDNN, done here on the CPU: new storage for every tensor in the list."""
    outcome = []
    for flattens in (False, True):
        model = reader(lambda: nn.LSTM(4, 5, num_layers=2))
        late, optimizer = attach(model, "rank-one", latephase.Parameters("recurrent.bias*"))
        late.start()
        with monkeypatch.context() as patch:
            if flattens:
                patch.setattr(nn.LSTM, "flatten_parameters", _flatten)
                patch.setattr(Tensor, "is_cuda", True)
            train(model, optimizer, batches(7, model.recurrent))
        outcome.append(dict(late.averaged_state_dict()))
    assert_same(outcome[1], outcome[0], 1e-14)


def _flatten(module: nn.LSTM) -> None:
    weights = module._flat_weights
    if all(isinstance(w, Tensor) for w in weights):
        with torch.no_grad():
            buffer = torch.cat([w.reshape(-1) for w in weights])
            for weight, part in zip(weights, buffer.split([w.numel() for w in weights]), strict=True):
                weight.set_(part.view_as(weight))


def test_packed_sequences() -> None:
    class Packs(Reader):
        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            _, (hidden, _) = self.recurrent(packed)
            return self.head(hidden[-1])

    x, lengths = torch.randn(3, 6, 4).double(), torch.tensor([6, 2, 4])
    torch.manual_seed(0)
    model = Packs(nn.LSTM(4, 5, batch_first=True)).double()
    expected = model(x, lengths)
    late, optimizer = attach(model)
    assert torch.equal(model(x, lengths), expected)
    late.start()
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(x, lengths), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    output = model.eval()(x, lengths)
    late.collapse()
    torch.testing.assert_close(model(x, lengths), output, rtol=1e-12, atol=1e-12)


def test_the_hidden_state_is_carried_from_member_to_member() -> None:
    """Truncated back-propagation: what the module returns is what the next call takes, as with the plain module."""
    model = nn.LSTM(4, 5).double()
    late = latephase.LatePhase(model, 2, ["rank-one"])
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    state = None
    for x in torch.randn(5, 3, 2, 4).double():
        optimizer.zero_grad()
        output, state = model(x, state)
        output.square().sum().backward()
        optimizer.step()
        state = tuple(part.detach() for part in state)
    assert late.rounds == 2


def test_autocast_and_float32_go_through_the_fused_kernel() -> None:
    model = reader(lambda: nn.LSTM(4, 5), dtype=torch.float32)
    late, optimizer = attach(model)
    late.start()
    for x, y in batches(4, model.recurrent, torch.float32):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_parallel_says_that_recurrent_kernels_need_the_loop() -> None:
    model = reader(lambda: nn.LSTM(4, 5, batch_first=True))
    late, optimizer = attach(model)
    late.start()
    before = tensors(model)
    with pytest.raises(LatePhaseError, match=r"parallel: .*lstm.*use the loop"):
        late.parallel(torch.randn(6, 3, 4).double())
    assert_same(tensors(model), before)
    train(model, optimizer, batches(3, model.recurrent))  # and the loop goes on
    assert late.rounds == 1


# The graph breaks at every recurrent module, and dynamo then looks at the gradient of what comes out of it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("make", RECURRENT[:1] + RECURRENT[3:4])
def test_a_compiled_model_is_the_eager_one(make) -> None:
    outcome = []
    for backend in (None, "eager"):
        model = reader(make).eval()
        model.head.train()
        late, optimizer = attach(model.train())
        model.recurrent.dropout = 0.0
        late.start()
        torch._dynamo.reset()
        called = model if backend is None else torch.compile(model, backend=backend)
        train(called, optimizer, batches(7, model.recurrent))
        outcome.append(dict(late.averaged_state_dict()))
    assert_same(outcome[1], outcome[0], 1e-13)


def test_a_foreign_parametrization_is_refused_by_name() -> None:
    model = reader(lambda: nn.LSTM(4, 5))
    nn.utils.parametrizations.weight_norm(model.recurrent, "weight_hh_l0")
    with pytest.raises(LatePhaseValueError, match=r"recurrent\.weight_hh_l0.*parametrization"):
        attach(model)

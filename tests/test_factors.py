"""Factors beside attention, embedding, tied and quantised weights: right, or refused by name."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latephase
from cases import Case, assert_same
from latephase import LatePhaseValueError, RankOne

CLASSES = 3


def attach(model: nn.Module, *weights, members: int = 3, noise: float = 0.0):
    late = latephase.LatePhase(model, members, weights or ["rank-one"], noise)
    return late, late.optimizer(torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9))


def train(model, optimizer, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


# Attention


class Attends(nn.Module):
    """Attention over a sequence; keys and values may have a width of their own, which unpacks the projection."""

    def __init__(self, inner: int | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, kdim=inner, vdim=inner, batch_first=True)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.inner is None else x[..., :3]
        return self.attention(x, other, other, need_weights=False)[0].mean(1)


@pytest.mark.parametrize("inner", [None, 3])
@pytest.mark.parametrize("family", [RankOne, lambda: latephase.LoRA(2)])
def test_attention_is_right_in_train_and_eval_with_and_without_gradients(inner: int | None, family) -> None:
    """In eval mode without gradients torch takes a fused path, which reads the weights by itself."""
    torch.manual_seed(0)
    model = Attends(inner).double()
    packed = ["in_proj_weight"] if inner is None else [f"{kind}_proj_weight" for kind in "qkv"]
    x = torch.randn(6, 3, 4).double()
    before, plain = model(x), copy.deepcopy(dict(model.state_dict()))
    late, optimizer = attach(model, family())
    owners = {name.partition("parametrizations.")[2].split(".")[0] for name in late.late_names()}
    assert owners == {*packed, "weight"}  # that of the output projection, a linear layer
    assert torch.equal(model(x), before)
    late.start()
    train(model, optimizer, [(x, torch.arange(6) % 4)] * 5)
    for k in range(3):
        with late.member(k):
            twin = Attends(inner).double()
            weights = {name: getattr(model.attention, name) for name in packed}
            weights |= {
                "in_proj_bias": model.attention.in_proj_bias,
                "out_proj.weight": model.attention.out_proj.weight,
            }
            weights["out_proj.bias"] = model.attention.out_proj.bias
            twin.attention.load_state_dict(weights)
            for training in (True, False):
                actual, expected = model.train(training)(x), twin.train(training)(x)
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
                with torch.no_grad():
                    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-14)
    output = model.eval()(x).detach()
    late.collapse()
    with torch.no_grad():
        torch.testing.assert_close(model(x), output, rtol=0, atol=1e-14)
    assert list(model.state_dict()) == list(plain)
    assert type(model.attention) is nn.MultiheadAttention


def test_an_encoders_fused_path_reads_the_members_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    late = latephase.LatePhase(model, 2, ["rank-one"], noise=0.3)
    late.start()
    x = torch.randn(3, 4, 8).double()
    with late.member(1):
        expected = model.train()(x).detach()
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-13)


def test_an_attention_module_is_chosen_with_its_output_projection() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12)
    both = ["self_attn.in_proj_weight", "self_attn.out_proj.weight"]
    assert list(RankOne(nn.MultiheadAttention).targets(model)) == both
    assert list(RankOne(names="self_attn").targets(model)) == both
    assert list(RankOne(names="*.out_proj").targets(model)) == both[1:]
    assert list(RankOne(nn.Linear).targets(model)) == [both[1], "linear1.weight", "linear2.weight"]


# Embeddings and tied weights


def test_embeddings_take_part_by_type_or_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert list(RankOne().targets(model)) == ["1.weight"]
    assert list(RankOne(nn.Embedding).targets(model)) == ["0.weight"]
    assert list(RankOne(names="*").targets(model)) == ["0.weight", "1.weight"]


def test_nothing_but_a_tied_table_is_nothing_by_default() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    with pytest.raises(LatePhaseValueError, match=r"matches nothing.* 0, 1 .*tied.*by name"):
        attach(model)


class Conv1D(nn.Module):
    """The linear layer of GPT-2 in Hugging Face's library: its weight is (in, out)."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inner, outer)), nn.Parameter(torch.zeros(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("family", [RankOne(), latephase.LoRA(2)])
def test_the_transposed_linear_layer_of_hugging_face_is_known_by_its_name(family) -> None:
    model = nn.Sequential(Conv1D(5, 4), nn.Tanh(), Conv1D(CLASSES, 5))
    x = torch.randn(6, 4)
    before = model(x)
    late, optimizer = attach(model, family)
    assert {name.partition(".")[0] for name in late.late_names()} == {"0", "2"}
    assert torch.equal(model(x), before)
    late.start()
    train(model, optimizer, [(x, torch.arange(6) % CLASSES)] * 4)
    late.collapse(check=x)


@pytest.mark.parametrize("family", [RankOne, lambda **kw: latephase.LoRA(2, targets=kw["names"])])
def test_an_embeddings_padding_stays(family) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.Flatten(), nn.Linear(12, CLASSES)).double()
    late, optimizer = attach(model, family(names="0"))
    late.start()
    tokens = torch.tensor([[0, 1, 2], [1, 1, 4], [3, 1, 0]])
    train(model, optimizer, [(tokens, torch.arange(3))] * 6)
    late.collapse()
    assert not model[0].weight[1].any()
    assert model[0].weight[0].any()


@pytest.mark.parametrize(("option", "value"), [("sparse", True), ("max_norm", 1.5)])
def test_embeddings_that_are_not_simply_read_are_refused(option: str, value) -> None:
    model = nn.Sequential(nn.Embedding(5, 4, **{option: value}), nn.Linear(4, 2))
    for family in (RankOne(names="*"), latephase.LoRA(2, targets="0")):
        with pytest.raises(LatePhaseValueError, match=rf"'0\.weight'.*{option}={value}.*without {option}"):
            attach(model, family)
    assert attach(model)[0].late_names()  # without the embedding it works


@pytest.mark.parametrize(
    ("family", "chosen"),
    [(family, chosen) for family in ("rank-one", "lora") for chosen in ("embed", "decoder")]
    + [("hypernetwork", "decoder")],
)
def test_tied_weights_have_one_set_of_factors_and_stay_tied(family: str, chosen: str) -> None:
    made = {"rank-one": RankOne, "hypernetwork": latephase.Hypernetwork}
    case = Case("tied")
    plain, model = case.plain().eval(), case.plain()
    weights = latephase.LoRA(2, targets=chosen) if family == "lora" else made[family](names=chosen)
    late, optimizer = attach(model, weights)
    assert {name.partition(".")[0] for name in late.late_names()} == {"embed"}  # under its first name
    (batch,) = case.batches(1)
    torch.testing.assert_close(model.eval()(batch[0]), plain(batch[0]), rtol=0, atol=1e-13)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.train()
    late.start()
    train(model, optimizer, case.batches(5))
    assert torch.equal(model.decoder.weight, model.embed.weight)
    average = late.averaged_state_dict()
    assert torch.equal(average["decoder.weight"], average["embed.weight"])
    late.collapse()
    assert model.decoder.weight is model.embed.weight
    assert_same(dict(model.state_dict()), dict(average))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_a_module_that_is_reached_by_two_paths_takes_part_in_parallel() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    model = Twice().double()
    late, _ = attach(model, "full", noise=0.3)
    late.start()
    x = torch.randn(6, 4).double()
    expected = late.predict(x[:2])[0], late.predict(x[4:])[2]
    with torch.no_grad():
        outputs = late.parallel(x)
    torch.testing.assert_close(outputs[:2], expected[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(outputs[4:], expected[1], rtol=0, atol=1e-14)
    assert all(type(p) is nn.Parameter for p in model.parameters())


# Quantised weights

FAMILIES = {
    "rank-one": RankOne(),
    "lora": latephase.LoRA(2),
    "hypernetwork": latephase.Hypernetwork(names="*"),
    "head": latephase.Head(),
    "parameters": latephase.Parameters("*.weight"),
    "full": latephase.Full(),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_quantised_weight_is_refused_by_name_with_its_dtype(family: str, dtype: torch.dtype) -> None:
    """As adapter libraries store them: a linear layer whose Parameter holds eight-bit numbers."""
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4).to(dtype), requires_grad=False)
    with pytest.raises(LatePhaseValueError, match=rf"'0\.weight' is quantised.*{dtype}.*floating-point"):
        latephase.LatePhase(model, 2, [FAMILIES[family]])
    assert type(model[0]) is nn.Linear


def test_a_module_that_holds_no_parameter_is_refused_by_name() -> None:
    class Packed(nn.Linear):
        """A linear layer that keeps its weight elsewhere, as quantised and weight-normalised ones do."""

        def __init__(self) -> None:
            super().__init__(4, 4)
            weight = self.weight.detach()
            del self.weight
            self.weight = weight

    for family in (RankOne(), latephase.LoRA(2)):
        with pytest.raises(LatePhaseValueError, match=r"'0\.weight' of Packed is no parameter.*quantised"):
            attach(nn.Sequential(Packed()), family)

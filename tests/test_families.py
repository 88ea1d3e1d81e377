"""Which tensors a family takes, and that those it adds change nothing of the model to the outside."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import EVERY, FACTORED, Case, assert_same, run, tensors, train
from latephase import Full, Head, Hypernetwork, LoRA, Normalization, Parameters, RankOne
from zoo import GemmaRMSNorm, LlamaRMSNorm, T5LayerNorm


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_names_are_those_of_the_interface(case: Case) -> None:
    model, _, late = case.attach()
    assert set(late.late_names()) == case.late_names()
    by_name = dict(model.named_parameters())
    assert [by_name[name] for name in late.late_names()] == late.late_parameters()


def late_names(model: nn.Module, *weights) -> list[str]:
    return latephase.LatePhase(model, members=2, weights=list(weights)).late_names()


class OwnNorm(nn.Module):
    """A norm of the user's own, known by the name of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x / x.norm(dim=1, keepdim=True) * self.weight


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm1d(4), ["0.weight", "0.bias"]),
        (nn.BatchNorm2d(4), ["0.weight", "0.bias"]),
        (nn.BatchNorm3d(4), ["0.weight", "0.bias"]),
        (nn.SyncBatchNorm(4), ["0.weight", "0.bias"]),
        (nn.LayerNorm(4), ["0.weight", "0.bias"]),
        (nn.LayerNorm(4, bias=False), ["0.weight"]),
        (nn.GroupNorm(2, 4), ["0.weight", "0.bias"]),
        (nn.InstanceNorm2d(4, affine=True), ["0.weight", "0.bias"]),
        (nn.RMSNorm(4), ["0.weight"]),
        (OwnNorm(), ["0.weight"]),
        (LlamaRMSNorm(4), ["0.weight"]),
        (T5LayerNorm(4, bias=True), ["0.weight", "0.bias"]),
        (GemmaRMSNorm(4), ["0.weight"]),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_norm_covers_every_kind_of_norm(layer: nn.Module, expected: list[str]) -> None:
    assert late_names(nn.Sequential(layer, nn.Linear(4, 2)), "norm") == expected
    assert late_names(nn.Sequential(layer, nn.Linear(4, 2)), Normalization()) == expected


@pytest.mark.parametrize("make", [LlamaRMSNorm, GemmaRMSNorm, nn.RMSNorm, nn.LayerNorm])
def test_the_average_of_a_norms_weights_is_the_average_of_its_outputs(make) -> None:
    """Also where the scale is one plus the weight: the output is linear in both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), make(4), nn.Linear(4, 3)).double()
    late = latephase.LatePhase(model, 3, ["norm"])
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.5))
    late.start()
    for _ in range(7):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(6, 5).double()), torch.arange(6) % 3).backward()
        optimizer.step()
    x = torch.randn(4, 4).double()
    outputs = []
    for k in range(3):
        with late.member(k):
            outputs.append(model[1](x).detach())
    assert not torch.allclose(outputs[0], outputs[1])
    model.eval()
    torch.testing.assert_close(model[1](x).detach(), torch.stack(outputs).mean(0), rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["norm", "rank-one", "lora"])
@pytest.mark.parametrize("kind", ["Llama", "Gemma"])
def test_language_models_of_hugging_face_keep_their_keys_and_their_tie(kind: str, family: str) -> None:
    library = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(library, f"{kind}Config")(
        vocab_size=32, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, **sizes
    )
    torch.manual_seed(0)
    model = getattr(library, f"{kind}ForCausalLM")(config).double()
    keys, parameters = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    late = latephase.LatePhase(model, 2, [family])
    optimizer = late.optimizer(torch.optim.AdamW(model.parameters(), lr=0.01))
    late.start()
    tokens = torch.randint(32, (3, 6))
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    output = model.eval()(input_ids=tokens).logits.detach()
    assert list(model.state_dict()) == keys
    late.collapse()
    torch.testing.assert_close(model(input_ids=tokens).logits, output, rtol=1e-10, atol=1e-10)
    assert [name for name, _ in model.named_parameters()] == parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_names_and_objects_mean_the_same() -> None:
    for name, family in (("norm", Normalization()), ("head", Head()), ("full", Full()), ("rank-one", RankOne())):
        assert late_names(Case().plain(), name) == late_names(Case().plain(), family)
    assert late_names(Case().plain(), "hypernetwork") == late_names(Case().plain(), Hypernetwork())
    wide = Case("transformer")
    assert late_names(wide.plain(), "lora") == late_names(wide.plain(), LoRA(8))
    assert latephase.LatePhase(Case().plain(), weights="norm").late_names() == late_names(Case().plain(), "norm")
    defaults = latephase.LatePhase(Case().plain())
    assert defaults.members == 10
    assert set(defaults.late_names()) == Case().late_names()


def test_head_is_the_last_linear_that_the_model_registers_or_the_named_one() -> None:
    model = nn.Sequential(OrderedDict(head=nn.Linear(4, 3), body=nn.Linear(2, 4)))
    assert late_names(model, "head") == ["body.weight", "body.bias"]
    model = nn.Sequential(OrderedDict(head=nn.Linear(4, 3), body=nn.Linear(2, 4)))
    assert late_names(model, Head("head")) == ["head.weight", "head.bias"]


def test_patterns_are_fnmatch_over_dotted_names() -> None:
    def model():
        return Case(model="wrn_10_1").plain()

    every = [name for name, _ in model().named_parameters()]
    assert late_names(model(), Parameters("blocks.?.conv1.weight")) == [f"blocks.{i}.conv1.weight" for i in range(3)]
    assert late_names(model(), Parameters("*")) == every
    assert late_names(model(), Parameters("fc.bias", "bn.*")) == ["fc.bias", "bn.weight", "bn.bias"]
    assert late_names(model(), Parameters("blocks.[12].bn2.bias"), "head") == [
        "blocks.1.bn2.bias",
        "blocks.2.bn2.bias",
        "fc.weight",
        "fc.bias",
    ]


def test_a_tied_parameter_is_one_tensor_with_all_its_owners() -> None:
    case = Case(model="tied", optimizer="sgd")
    for pattern in ("embed.*", "decoder.*"):  # found under either of its names
        model = case.plain()
        late = latephase.LatePhase(model, members=2, weights=[Parameters(pattern)])
        assert late.late_names() == ["embed.weight"]
        optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        late.start()
        train(case, model, optimizer, case.batches(3))
        assert model.decoder.weight is model.embed.weight
        average = late.averaged_state_dict()
        assert torch.equal(average["decoder.weight"], average["embed.weight"])
        late.collapse()
        assert model.decoder.weight is model.embed.weight


@pytest.mark.parametrize("when", ["attached", "late", "collapsed"])
@pytest.mark.parametrize("case", [c for c in EVERY if c.family in ("norm+head", "parameters", *FACTORED)], ids=str)
def test_keys_in_are_keys_out_in_the_same_order(case: Case, when: str) -> None:
    model, _, late = case.attach()
    if when != "attached":
        model, _, late = run(case, 4)
    if when == "collapsed":
        late.collapse()
    plain = case.plain(seed=4)
    assert list(model.state_dict()) == list(plain.state_dict()) == list(late.averaged_state_dict())
    assert [v.dtype for v in model.state_dict().values()] == [v.dtype for v in plain.state_dict().values()]
    plain.load_state_dict(model.state_dict(), strict=True)
    (batch,) = case.batches(1, first=33)
    torch.testing.assert_close(plain.eval()(batch[0]), model.eval()(batch[0]), rtol=1e-12, atol=1e-12)
    other = case.plain(seed=8).state_dict()  # and the plain model's checkpoint loads strictly into this one
    model.load_state_dict(other, strict=True)
    assert_same(dict(model.state_dict()), dict(other), 1e-15 if case.family == "hypernetwork" else 0.0)


RANKED = [c for c in EVERY if c.family == "rank-one"]


@pytest.mark.parametrize("case", RANKED, ids=str)
def test_factors_change_no_function_at_attachment(case: Case) -> None:
    (batch,) = case.batches(1)
    expected = case.plain().eval()(batch[0])
    model, optimizer, late = case.attach()
    assert torch.equal(model.eval()(batch[0]), expected)
    assert all(torch.equal(p, torch.ones_like(p)) for p in late.late_parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in late.late_parameters()} <= held  # they joined the optimizer of their weights


def test_the_weight_stays_the_same_parameter_under_its_factors() -> None:
    case = Case(family="rank-one")
    model = case.plain()
    weight = model.conv1.weight
    optimizer = torch.optim.SGD(
        [{"params": [model.conv1.weight], "lr": 0.5}, {"params": [p for p in model.parameters() if p is not weight]}],
        lr=0.1,
    )
    late = latephase.LatePhase(model, members=2, weights=[RankOne()])
    late.optimizer(optimizer)
    names = dict(model.named_parameters())
    assert names["conv1.parametrizations.weight.original"] is weight
    row = names["conv1.parametrizations.weight.0.row"]
    column = names["conv1.parametrizations.weight.0.column"]
    assert (row.shape, column.shape) == ((4,), (2,))
    first = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert first == {id(weight), id(row), id(column)}  # the group of their weight, not just any
    late.collapse()
    assert model.conv1.weight is weight
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(weight)]


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.Linear(3, 5), ((5,), (3,))),
        (nn.Conv1d(4, 6, 3), ((6,), (4,))),
        (nn.Conv2d(4, 6, 3, groups=2), ((6,), (2,))),
        (nn.Conv3d(4, 8, 1, bias=False), ((8,), (4,))),
    ],
)
def test_rank_one_scales_rows_and_columns(layer: nn.Module, shapes) -> None:
    model = nn.Sequential(layer).double()
    plain = layer.weight.detach().clone()
    late = latephase.LatePhase(model, members=2, weights=["rank-one"], noise=0.5)
    row, column = late.late_parameters()
    assert (tuple(row.shape), tuple(column.shape)) == shapes
    late.start()
    for k in range(2):
        with late.member(k):
            outer = torch.outer(row, column).reshape(*shapes[0], *shapes[1], *[1] * (plain.ndim - 2))
            torch.testing.assert_close(layer.weight, plain * outer, rtol=0, atol=1e-15)
    mean = [torch.stack([s[0], s[1]]).mean(0) for s in late.state_dict()["values"].values()]
    folded = plain * torch.outer(*mean).reshape(*shapes[0], *shapes[1], *[1] * (plain.ndim - 2))
    late.collapse()
    torch.testing.assert_close(layer.weight.detach(), folded, rtol=0, atol=1e-14)
    assert type(layer).__name__ in ("Linear", "Conv1d", "Conv2d", "Conv3d")


def test_rank_one_takes_types_and_names() -> None:
    def names(*args, **kwargs) -> set[str]:
        found = late_names(Case(model="wrn_10_1").plain(), RankOne(*args, **kwargs))
        return {name.partition(".parametrizations")[0] for name in found}

    assert names(nn.Linear) == {"fc"}
    assert names(nn.Conv2d, names=["blocks.0.*"]) == {"blocks.0.conv1", "blocks.0.conv2"}
    assert names(names=["fc", "conv"]) == {"fc", "conv"}
    with pytest.raises(latephase.LatePhaseValueError, match=r"Bilinear.*Embedding"):
        RankOne(nn.Bilinear)


def test_a_family_of_the_users_own_is_a_subclass() -> None:
    """The protocol is open: a family is one class, and nothing else has to know of it."""

    class Biases(latephase.Family):
        def targets(self, model):
            return {name: p for name, p in model.named_parameters() if name.endswith(".bias")}

    case = Case(model="ln_mlp")
    model = case.plain()
    late = latephase.LatePhase(model, members=3, weights=[Biases(), Parameters("6.weight")])
    assert late.late_names() == ["0.bias", "1.bias", "3.bias", "4.bias", "6.bias", "6.weight"]
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    train(case, model, optimizer, case.batches(3))
    assert late.rounds == 1


def test_running_statistics_are_per_member_whatever_is_late() -> None:
    """Each member has its own activations, so its own statistics: also without affine weights."""
    case = Case(family="head", start=0)
    model, optimizer, late = case.attach()
    late.start()
    train(case, model, optimizer, case.batches(3))
    for layer in ("bn1", "bn2", "bn3"):
        held = []
        for k in range(3):
            with late.member(k):
                held.append(tensors(model)[f"{layer}.running_mean"])
        assert not torch.equal(held[0], held[1])
        assert not torch.equal(held[1], held[2])


def test_instance_norm_with_statistics_folds_like_batchnorm() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 2)).double()
    late = latephase.LatePhase(model, members=3)
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    for _ in range(6):
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(5, 3, 4).double() * 2 + 1), torch.ones(5, 2).double()).backward()
        optimizer.step()
    x = torch.randn(2, 3, 4).double()
    model.eval()
    outputs = []
    for k in range(3):
        with late.member(k):
            outputs.append(norm(x).detach())
    torch.testing.assert_close(norm(x).detach(), torch.stack(outputs).mean(0), rtol=0, atol=1e-12)

"""Hypernetwork: which layers share templates, what attachment keeps, and the laws for each way of attaching."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from cases import Case, assert_matches, assert_same, run, run_reference, tensors, train
from latephase import Hypernetwork, LatePhaseValueError

VARIANTS = ["hypernetwork", "hypernetwork-few", "hypernetwork-anew"]
MODELS = ["bn_cnn", "ln_mlp", "gn_cnn"]
ROWS = [Case(model=model, family=family) for model in MODELS for family in VARIANTS]


def attached(model: nn.Module, family: Hypernetwork | str = "hypernetwork", **options) -> latephase.LatePhase:
    return latephase.LatePhase(model, **{"members": 3, "weights": [family], **options})


def factors(model: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding, templates and residual of a layer."""
    made = model.get_submodule(name).parametrizations.weight
    return made[0].embedding, made[0].bank.templates, made.original


def stage(width: int = 8) -> nn.Module:
    """A stage of a Wide ResNet in small: a stem, a layer half as wide, three wide ones, another kernel, a head."""
    channels = [(3, width // 2, 3), (width // 2, width, 3), *[(width, width, 3)] * 3, (width, width, 1)]
    return nn.Sequential(*(nn.Conv2d(i, o, k) for i, o, k in channels), nn.Linear(width, 2)).double()


# Which layers, which blocks


def test_layers_of_different_width_share_templates() -> None:
    model = stage()
    late = attached(model)
    shapes = {name.partition(".")[0]: tuple(p.shape) for name, p in model.named_parameters() if "embedding" in name}
    assert shapes == {"1": (1, 7), "2": (2, 7), "3": (2, 7), "4": (2, 7), "5": (2, 2)}  # M blocks, J = M of each set
    banks = [model[i].parametrizations.weight[0].bank for i in (1, 2, 3, 4, 5)]
    assert all(bank is banks[0] for bank in banks[:4])
    assert banks[4] is not banks[0]
    assert tuple(banks[0].templates.shape) == (7, 8, 4, 3, 3)
    assert tuple(banks[4].templates.shape) == (2, 8, 4, 1, 1)
    assert type(model[0]) is nn.Conv2d  # stem and head stay plain
    assert type(model[6]) is nn.Linear
    assert len(late.late_parameters()) == 5


def test_a_wide_resnets_stage_has_the_authors_blocks() -> None:
    """WRN-28: eight convolutions a stage, the first of them half as wide: 15 blocks, each half a layer."""
    channels = [(32, 64), *[(64, 64)] * 7]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), *(nn.Conv2d(i, o, 3) for i, o in channels), nn.Linear(64, 2))
    attached(model, Hypernetwork(templates=14))
    sizes = [tuple(factors(model, str(i))[0].shape) for i in range(1, 9)]
    assert sizes == [(1, 14), *[(2, 14)] * 7]
    assert tuple(factors(model, "1")[1].shape) == (14, 64, 32, 3, 3)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (4, {"1": 1, "2": 2, "3": 2, "4": 2, "5": 2}),
        (8, {"2": 1, "3": 1, "4": 1, "5": 1}),
        (1, {"1": 4, "2": 8, "3": 8, "4": 8, "5": 8}),
    ],
)
def test_split_says_how_wide_a_block_is_and_leaves_out_what_it_does_not_divide(split: int, expected: dict) -> None:
    model = stage()
    attached(model, Hypernetwork(split=split))
    blocks = {n.partition(".")[0]: len(p) for n, p in model.named_parameters() if n.endswith("embedding")}
    assert blocks == expected


def test_types_and_names_choose_modules() -> None:
    def names(*args, **kwargs) -> set[str]:
        return {name.partition(".")[0] for name in attached(stage(), Hypernetwork(*args, **kwargs)).late_names()}

    assert names() == names(nn.Conv2d) == set("12345")
    assert names(names=["0", "6"]) == {"0", "6"}  # by name, stem and head too
    assert names(nn.Conv2d, names="[56]") == {"5"}
    assert names(nn.Linear, names="*") == {"6"}


@pytest.mark.parametrize(
    ("first", "second", "x"),
    [
        (nn.Linear(4, 6), nn.Linear(6, 6), (5, 4)),
        (nn.Conv1d(4, 6, 3), nn.Conv1d(6, 6, 3), (2, 4, 7)),
        (nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=2), (2, 4, 7, 7)),
        (nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 3, groups=6), (2, 6, 7, 7)),
        (nn.Conv3d(4, 6, 1, bias=False), nn.Conv3d(6, 6, 1), (1, 4, 3, 3, 3)),
        (nn.ConvTranspose1d(2, 4, 3), nn.ConvTranspose1d(4, 4, 3), (2, 2, 5)),
        (nn.ConvTranspose2d(2, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 3, groups=1), (2, 2, 4, 4)),
        (nn.ConvTranspose3d(4, 4, 2, groups=2), nn.ConvTranspose3d(4, 4, 2, groups=2), (1, 4, 2, 2, 2)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
@pytest.mark.parametrize("templates", [None, 1, 5])
def test_every_kind_of_layer_keeps_its_function_and_equals_the_equation(first, second, x, templates) -> None:
    model = nn.Sequential(copy.deepcopy(first), copy.deepcopy(second)).double()
    inputs = torch.randn(*x, dtype=torch.float64)
    expected, plain = model(inputs), dict(copy.deepcopy(model).state_dict())
    attached(model, Hypernetwork(names="*", templates=templates), noise=0.5)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-13, atol=1e-13)
    assert_same(dict(model.state_dict()), plain, 1e-15)
    axis = 0 if "Transpose" in type(first).__name__ else 1
    for name in ("0", "1"):  # the equation, block by block, with other embeddings
        embedding, bank, residual = factors(model, name)
        embedding.data.normal_()
        width = bank.shape[axis + 1]
        weight = model.get_submodule(name).weight
        assert len(embedding) * width == weight.shape[axis]
        for b, row in enumerate(embedding):
            made = sum(row[j] * bank[j] for j in range(len(bank)))
            rest = residual.narrow(axis, b * width, width)
            torch.testing.assert_close(weight.narrow(axis, b * width, width), rest + made, rtol=0, atol=1e-14)


# Attachment


def test_embeddings_begin_orthogonal() -> None:
    model = stage()
    attached(model)
    rows = torch.cat([factors(model, name)[0] for name in "1234"])
    torch.testing.assert_close(rows @ rows.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)
    for keep in (True, False):
        model = stage()
        attached(model, Hypernetwork(templates=3, keep=keep))
        rows = torch.cat([factors(model, name)[0] for name in "1234"])
        assert rows.square().sum(1).mean().item() == pytest.approx(
            1, abs=0.15
        )  # the scale of templates is the weights'
        if keep:
            torch.testing.assert_close(rows.T @ rows, torch.eye(3).double() * 7 / 3, rtol=0, atol=1e-12)


def test_enough_templates_need_no_residual() -> None:
    for templates in (None, 7, 12):
        model = stage()
        attached(model, Hypernetwork(nn.Conv2d, names="[1-4]", templates=templates))
        for name in "1234":
            _, bank, residual = factors(model, name)
            assert residual.abs().max() < 1e-15
            assert not residual.requires_grad
            assert bank.requires_grad
            assert 0.5 < bank.std() / stage()[2].weight.std() < 2  # as random as the weights are
            assert torch.linalg.matrix_rank(bank.flatten(1)) == len(
                bank
            )  # all of them, where there are more than blocks


def test_too_few_templates_leave_the_smallest_residual_and_it_trains() -> None:
    model = stage()
    plain = [model[i].weight.detach().clone() for i in (1, 2, 3, 4)]
    attached(model, Hypernetwork(names="[1-4]", templates=3))
    residual = torch.stack([p.pow(2).sum() for p in (factors(model, name)[2] for name in "1234")]).sum()
    rows = torch.cat([w.unflatten(1, (-1, 4)).movedim(1, 0).flatten(1) for w in plain])
    assert residual.item() == pytest.approx(torch.linalg.svdvals(rows)[3:].square().sum().item())
    assert all(factors(model, name)[2].requires_grad for name in "1234")


@pytest.mark.parametrize("templates", [None, 3, 12])
def test_anew_the_layers_have_the_scale_of_their_weights_and_nothing_else_of_them(templates) -> None:
    model = stage(32)
    with torch.no_grad():
        model[3].weight.mul_(5)
    before = {i: model[i].weight.detach().clone() for i in range(1, 6)}
    attached(model, Hypernetwork(templates=templates, keep=False))
    for i, weight in before.items():
        made = model[i].weight.detach()
        assert (made.std() / weight.std()).item() == pytest.approx(1, abs=0.15)
        assert abs(F.cosine_similarity(made.flatten(), weight.flatten(), dim=0)) < 0.1
        residual = factors(model, str(i))[2]
        assert not residual.any()
        assert not residual.requires_grad


def test_weights_of_zeros_stay_zeros() -> None:
    for keep in (True, False):
        model = stage()
        for i in range(1, 5):
            nn.init.zeros_(model[i].weight)
        attached(model, Hypernetwork(keep=keep))
        assert not model[2].weight.any()
        assert factors(model, "2")[0 if keep else 1].any()  # one of the two factors can move


def test_attachment_draws_from_its_own_generator_and_the_seed_decides() -> None:
    torch.manual_seed(3)
    torch.rand(5)
    model = stage()
    before = torch.get_rng_state()
    attached(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    torch.rand(5)
    other = stage()
    attached(other, Hypernetwork(seed=1))
    assert not torch.allclose(factors(model, "2")[0], factors(other, "2")[0])
    assert_same(dict(model.state_dict()), dict(other.state_dict()), 1e-15)


def test_a_refused_attachment_gives_every_weight_back_bit_for_bit() -> None:
    class Refusing(latephase.Family):
        def targets(self, model):
            return {"6.bias": model[6].bias}

        def install(self, model, targets):
            raise LatePhaseValueError("no")

    model = stage().float()
    plain = tensors(model)
    with pytest.raises(LatePhaseValueError, match="no"):
        latephase.LatePhase(model, weights=[Hypernetwork(templates=2), Refusing()])
    assert_same(tensors(model), plain)
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_weights_get_frozen_templates_and_stay_frozen() -> None:
    model = stage()
    for i in range(1, 6):
        model[i].weight.requires_grad_(False)
    late = attached(model)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "templates" in n or "original" in n)
    assert all(p.requires_grad for p in late.late_parameters())
    late.collapse()
    assert [p.requires_grad for p in model.parameters()] == [
        n not in {f"{i}.weight" for i in range(1, 6)} for n, _ in model.named_parameters()
    ]


def test_templates_join_the_optimizer_group_of_their_first_weight_and_leave_with_the_phase() -> None:
    model = stage()
    groups = [{"params": [p for n, p in model.named_parameters() if n == name]} for name in ("2.weight", "1.weight")]
    rest = [p for n, p in model.named_parameters() if n not in ("1.weight", "2.weight")]
    optimizer = torch.optim.SGD([*groups, {"params": rest}], lr=0.1)
    before = [list(map(id, group["params"])) for group in optimizer.param_groups]
    late = attached(model)
    late.optimizer(optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    held = [
        {names[id(p)].partition("parametrizations.weight.")[2] for p in g["params"]} for g in optimizer.param_groups
    ]
    assert held[0] == {"original", "0.embedding"}  # of layer 2
    assert held[1] == {"original", "0.embedding", "0.bank.templates"}  # of layer 1, the first of its set
    every = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())  # each once
    saved = [name for name in late.state_dict()["plain"] if "templates" in name]
    assert saved == [f"{i}.parametrizations.weight.0.bank.templates" for i in (1, 5)]  # each set's once
    late.start()
    late.collapse()
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == before


# The average


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_the_average_of_the_embeddings_makes_the_average_of_the_weights(case: Case) -> None:
    """The composition is linear in what differs between the members, so this is exact, and not an approximation."""
    model, _, late = run(case, 7)
    made = []
    for k in range(case.members):
        with late.member(k):
            made.append(
                {n: m.weight.detach().clone() for n, m in model.named_modules() if hasattr(m, "parametrizations")}
            )
    average = late.averaged_state_dict()
    assert any(not torch.allclose(made[0][name], made[1][name]) for name in made[0])
    for name in made[0]:
        mean = torch.stack([weights[name] for weights in made]).mean(0)
        torch.testing.assert_close(average[f"{name}.weight"], mean, rtol=0, atol=1e-15)
    late.collapse()
    assert_same(dict(model.state_dict()), dict(average))
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


# The laws, for the ways of attaching that the shared table does not hold


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_the_loop_equals_the_reference(case: Case, optimizer: str) -> None:
    case = replace(case, optimizer=optimizer, gamma="mean")
    assert_matches(run(case, 8)[2], run_reference(case, 8), 1e-11)


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_parallel_equals_the_loop(case: Case) -> None:
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    for index in range(2):
        minibatches = list(case.batches(3, first=case.start + 3 * index))
        x, y = (torch.cat(part) for part in zip(*minibatches, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(late.parallel(x), y).backward()
        optimizer.step()
    assert_matches(late, run_reference(case, 6), 1e-9)


@pytest.mark.parametrize("when", ["attached", "late", "collapsed"])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_keys_stay_plain_and_plain_weights_load(case: Case, when: str) -> None:
    model, _, late = case.attach() if when == "attached" else run(case, 4)
    if when == "collapsed":
        late.collapse()
    plain = case.plain(seed=4)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    (batch,) = case.batches(1, first=33)
    torch.testing.assert_close(plain.eval()(batch[0]), model.eval()(batch[0]), rtol=1e-12, atol=1e-12)
    other = case.plain(seed=8)
    model.load_state_dict(other.state_dict(), strict=True)
    assert_same(dict(model.state_dict()), dict(other.state_dict()), 1e-15)
    if when == "late":
        for k in range(case.members):
            with late.member(k):
                torch.testing.assert_close(model(batch[0]), other.eval()(batch[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 2, 4])
@pytest.mark.parametrize("case", ROWS[:3], ids=str)
def test_saved_and_resumed_in_another_model_is_uninterrupted(case: Case, cut: int) -> None:
    model, optimizer, late = case.attach()
    train(case, model, optimizer, case.batches(case.start))
    if cut:
        late.start()
        train(case, model, optimizer, case.batches(cut, first=case.start))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), late.state_dict()))
    twin = case.plain(seed=6)  # another model, so that nothing but what was saved can be what it goes on with
    theirs = type(optimizer)(twin.parameters(), **{k: optimizer.defaults[k] for k in ("lr", "momentum", "nesterov")})
    again = latephase.LatePhase(twin, case.members, case.weights(), base_gradient=case.gamma)
    again.optimizer(theirs)
    twin.load_state_dict(state[0])
    theirs.load_state_dict(state[1])
    again.load_state_dict(state[2])
    for held, m, o in ((late, model, optimizer), (again, twin, theirs)):
        if not cut:
            held.start()
        train(case, m, o, case.batches(7 - cut, first=case.start + cut))
    ours = tensors(model)
    assert_same(
        {n: t for n, t in tensors(twin).items() if "initial" not in n},
        {n: t for n, t in ours.items() if "initial" not in n},
    )
    assert_same(dict(again.averaged_state_dict()), dict(late.averaged_state_dict()))


@pytest.mark.parametrize("case", ROWS[:3], ids=str)
def test_autocast_makes_the_weights_in_full_precision(case: Case) -> None:
    """The weights are made as collapse makes them; only the layers' own arithmetic is in bfloat16."""
    case = replace(case, dtype=torch.float32)
    model, optimizer, late = case.attach()
    late.start()
    for batch in case.batches(7):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            weight = model.conv2.weight
            loss = case.loss(batch)(model)
        assert torch.equal(weight, model.conv2.weight)
        loss.backward()
        optimizer.step()
    assert late.rounds == 2
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    average = late.averaged_state_dict()
    assert_same(dict(late.collapse().state_dict()), dict(average))


def test_the_model_may_move_between_attachment_and_start() -> None:
    model = stage().float()
    late = attached(model, Hypernetwork(templates=3))
    model.double()
    plain = stage()
    model.load_state_dict(plain.state_dict())
    assert_same(dict(model.state_dict()), dict(plain.state_dict()), 1e-15)
    late.start()
    assert_same(dict(late.collapse().state_dict()), dict(plain.state_dict()), 1e-15)


def test_half_precision_keeps_the_function_to_its_rounding() -> None:
    model = stage().bfloat16()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attached(model, Hypernetwork(templates=3))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=2 * 2**-8 * plain[name].abs().max().item())


def test_a_weight_of_another_shape_is_refused_by_load_state_dict() -> None:
    model = stage()
    attached(model)
    state = dict(model.state_dict())
    state["2.weight"] = torch.zeros(8, 4, 3, 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state)


def test_a_compiled_hypernetwork_is_the_eager_one() -> None:
    outcome = []
    for backend in (None, "aot_eager"):
        case = Case(family="hypernetwork-few", start=0)
        model, optimizer, late = case.attach()
        late.start()
        called = model if backend is None else torch.compile(model, backend=backend)
        for x, y in case.batches(7):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
                F.cross_entropy(called(x), y).backward()
            optimizer.step()
        outcome.append(dict(late.averaged_state_dict()))
    assert_same(outcome[1], outcome[0], 1e-11)


def test_training_learns_with_every_way_of_attaching() -> None:
    """Few templates and none of the weights (anew) train too: the loss falls well below that of guessing."""
    for options in ({}, {"templates": 3}, {"templates": 3, "keep": False}, {"templates": 20}):
        torch.manual_seed(0)
        x = torch.randn(64, 8)
        y = (x[:, 0] * x[:, 1] > 0).long()
        layers = [
            nn.Linear(8, 16),
            nn.Tanh(),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 2),
        ]
        model = nn.Sequential(*layers)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        late = attached(model, Hypernetwork(**options))
        late.optimizer(optimizer)
        for step in range(150):
            if step == 90:
                late.start()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        late.collapse()
        assert F.cross_entropy(model(x), y) < 0.3 * math.log(2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"templates": 0}, r"templates=0.*at least 1"),
        ({"templates": 2.0}, r"templates=2\.0"),
        ({"templates": True}, "templates=True"),
        ({"split": -4}, r"split=-4.*at least 1"),
        ({"split": "half"}, "split='half'"),
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments: dict, words: str) -> None:
    with pytest.raises(LatePhaseValueError, match=words):
        Hypernetwork(**arguments)


def test_bad_layers_are_named() -> None:
    with pytest.raises(LatePhaseValueError, match=r"Embedding.*Conv2d"):
        Hypernetwork(nn.Embedding)
    with pytest.raises(LatePhaseValueError, match=r"'1\.weight' is not initialised"):
        attached(nn.Sequential(nn.Linear(2, 4), nn.LazyLinear(4), nn.Linear(4, 2)), Hypernetwork(split=2))
    with pytest.raises(LatePhaseValueError, match=r"'1\.weight' is complex"):
        attached(nn.Sequential(*(nn.Linear(4, 4, dtype=torch.complex64) for _ in range(3))))
    model = stage()
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(LatePhaseValueError, match=r"2\.weight.*parametrization"):
        attached(model)
    late = attached(stage(), Hypernetwork(templates=3))
    with pytest.raises(LatePhaseValueError, match=r"embedding"):
        attached(stage(), Hypernetwork(templates=4)).load_state_dict(late.state_dict())

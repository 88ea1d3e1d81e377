"""The table that the core's tests share: models x families x optimizers x base_gradient x start.

The full product has 1,260 rows. `covering(strength)` picks, by a fixed rule, few of them such that every
combination of the values of any `strength` columns still occurs: with 2 every pair (for example each
optimizer with each model), with 3 every triple. Each test says which it takes. Add a row to a dictionary
here, and every test has it. `BESIDE` are rows beside the product, for models of sequences and low-rank adapters: every
test has these too.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import latephase
from latephase.reference import Reference
from zoo import (
    HYPERNETWORK,
    MODELS,
    PATTERNS,
    RANK_ONE,
    RECURRENT,
    UNTIED_HEAD,
    adapt,
    combine,
    factor,
    inputs,
    matrices,
)

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p, **kw: torch.optim.SGD(p, lr=0.1, **kw),
    "nesterov": lambda p, **kw: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3, **kw),
    "adam": lambda p, **kw: torch.optim.Adam(p, lr=1e-2, **kw),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.05, **kw),
    "rmsprop": lambda p, **kw: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, **kw),
}
FAMILIES = ("norm", "head", "norm+head", "parameters", "full", "rank-one", "hypernetwork")
LORA = ("lora", "lora-frozen", "lora-factors")
FACTORED = ("rank-one", "hypernetwork", "hypernetwork-few", "hypernetwork-anew", *LORA)  # families that add factors
KINDS = {"rank-one": ("row", "column"), **dict.fromkeys(LORA, ("up", "down"))}  # what they are called
SCALE = 1.5  # of low-rank products
CROSSED = tuple(model for model in MODELS if model not in ("decoder", *RECURRENT))
GAMMAS: tuple[str | float, ...] = ("sum", "mean", 0.3)
STARTS = (0, 3)  # minibatches of ordinary training before the members come to life


@dataclass(frozen=True)
class Case:
    """One row: everything that a run needs but its data."""

    model: str = "bn_cnn"
    family: str = "norm+head"
    optimizer: str = "nesterov"
    gamma: str | float = "sum"
    start: int = 3
    members: int = 3
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        return f"{self.model}-{self.family}-{self.optimizer}-{self.gamma}-T{self.start}"

    def plain(self, seed: int = 0) -> nn.Module:
        """A fresh model of the row, as its user wrote it."""
        torch.manual_seed(seed)
        return MODELS[self.model]().to(self.dtype)

    def weights(self) -> list:
        """The argument `weights` of LatePhase."""
        head = latephase.Head(UNTIED_HEAD[self.model]) if self.model in UNTIED_HEAD else "head"
        table = {
            "norm": ["norm"],
            "head": [head],
            "norm+head": ["norm", head],
            "parameters": [latephase.Parameters(*PATTERNS[self.model])],
            "full": ["full"],
            "rank-one": [latephase.RankOne(names=RANK_ONE.get(self.model))],
            "hypernetwork": [latephase.Hypernetwork(names=HYPERNETWORK[self.model])],
            "hypernetwork-few": [latephase.Hypernetwork(names=HYPERNETWORK[self.model], templates=2)],
            "hypernetwork-anew": [latephase.Hypernetwork(names=HYPERNETWORK[self.model], templates=2, keep=False)],
            "lora": [self.lora()],
            "lora-frozen": [self.lora(train_base=False)],
            "lora-factors": [self.lora(average="factors")],
        }
        return table[self.family]

    def lora(self, **options) -> latephase.LoRA:
        """Adapters of rank 2 beside the weights that the family of rank-one factors takes."""
        return latephase.LoRA(2, 2 * SCALE, RANK_ONE.get(self.model), **options)

    def late_names(self) -> set[str]:
        """The late-phase parameters by the words of the interface, worked out apart from the library."""
        model = self.plain()
        norms = [n for n, m in model.named_modules() if "Norm" in type(m).__name__]
        linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        head = [UNTIED_HEAD.get(self.model, linears[-1])]
        owners = {"norm": norms, "head": head, "norm+head": norms + head}.get(self.family, [])
        names = {name for name, _ in model.named_parameters()}
        if self.family in FACTORED:
            kinds = KINDS.get(self.family, ("embedding",))
            paths = [name.rpartition(".") for name in self.factored_names()]
            return {f"{owner}.parametrizations.{own}.0.{kind}" for owner, _, own in paths for kind in kinds}
        if self.family == "parameters":
            return {n for n in names if any(fnmatchcase(n, pattern) for pattern in PATTERNS[self.model])}
        return names if self.family == "full" else {n for n in names if n.rpartition(".")[0] in owners}

    def factored_names(self) -> list[str]:
        """The weights that get factors."""
        return matrices(self.plain(), RANK_ONE.get(self.model) if self.family in KINDS else HYPERNETWORK[self.model])

    def attach(self, **options) -> tuple[nn.Module, Optimizer, latephase.LatePhase]:
        """The model, its optimizer and the phase under test, not yet started."""
        model = self.plain()
        optimizer = OPTIMIZERS[self.optimizer](model.parameters())
        late = latephase.LatePhase(
            model, members=self.members, weights=self.weights(), base_gradient=self.gamma, **options
        )
        late.optimizer(optimizer)
        return model, optimizer, late

    def factored(self) -> nn.Module:
        """The model; with families that add factors one with factors, written here and not in the library."""
        model = self.plain()
        if self.family == "rank-one":
            factor(model, self.factored_names())
        elif self.family in LORA:
            adapt(model, self.factored_names(), self.attach()[0], SCALE, self.family == "lora-frozen")
        elif self.family in FACTORED:  # the factors begin with the library's values, which other tests judge
            combine(model, self.attach()[0])
        return model

    def reference(self, **options) -> tuple[nn.Module, Optimizer, Reference]:
        """The same run in the hands of the reference."""
        model = self.factored()
        optimizer = OPTIMIZERS[self.optimizer](model.parameters())
        if self.family in ("lora", "lora-frozen"):
            made = [(n, own) for n, m in model.named_modules() for own in getattr(m, "parametrizations", ())]
            options["effective"] = [f"{name}.{own}" for name, own in made]
        judge = Reference(model, optimizer, self.late_names(), self.members, base_gradient=self.gamma, **options)
        return model, optimizer, judge

    def batches(self, count: int, size: int = 4, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches number `first` and following, the same ones at every call."""
        for index in range(first, first + count):
            yield inputs(self.model, size, self.dtype, seed=index)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Callable[[nn.Module], Tensor]:
        return lambda model: F.cross_entropy(model(batch[0]), batch[1])


def train(case: Case, model: nn.Module, optimizer: Optimizer, batches, after_backward=None, after_step=None) -> None:
    """The user's loop."""
    for batch in batches:
        optimizer.zero_grad()
        case.loss(batch)(model).backward()
        if after_backward is not None:
            after_backward(list(model.parameters()))
        optimizer.step()
        if after_step is not None:
            after_step()


def run(case: Case, turns: int, **options) -> tuple[nn.Module, Optimizer, latephase.LatePhase]:
    """Attach, train to the start, start, and `turns` minibatches more."""
    model, optimizer, late = case.attach(**options)
    train(case, model, optimizer, case.batches(case.start))
    late.start()
    train(case, model, optimizer, case.batches(turns, first=case.start))
    return model, optimizer, late


def run_reference(case: Case, turns: int, **options) -> Reference:
    """`run`, by the reference."""
    _, _, judge = case.reference(**options)
    for batch in case.batches(case.start):
        judge.step(case.loss(batch))
    judge.start()
    for batch in case.batches(turns, first=case.start):
        judge.step(case.loss(batch))
    return judge


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that a model holds, by name: parameters and buffers as they lie in it now."""
    held = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in held}


def plain_tensors(average: nn.Module) -> dict[str, Tensor]:
    """The reference's average with the plain model's keys: factors are folded into their weight."""
    made = [(module, name) for module in average.modules() for name in getattr(module, "parametrizations", ())]
    values = [getattr(module, name).detach() for module, name in made]
    for (module, name), value in zip(made, values, strict=True):
        nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        module._parameters[name] = nn.Parameter(value)
    return dict(average.state_dict())


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0, what="") -> None:
    """Same names, and the same values: bit for bit, or within `tolerance` of max(1, value)."""
    assert actual.keys() == expected.keys(), what
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{what} {n}: {m}"
        )


def assert_matches(late: latephase.LatePhase, judge: Reference, tolerance: float) -> None:
    """Every member and the average equal the reference's."""
    assert late.turn == judge.turn
    assert set(late.late_names()) == judge.late
    for k, member in enumerate(judge.members):
        with late.member(k):
            assert_same(tensors(late.model), tensors(member), tolerance, f"member {k}")
    assert_same(dict(late.averaged_state_dict()), plain_tensors(judge.average()), tolerance, "average")


def covering(strength: int, columns: Sequence[Sequence] | None = None, base: Case | None = None) -> list[Case]:
    """Rows of the table in which every `strength` columns show every combination of their values."""
    columns = columns or (CROSSED, FAMILIES, tuple(OPTIMIZERS), GAMMAS, STARTS)
    sets = list(itertools.combinations(range(len(columns)), strength))
    seen: set[tuple] = set()
    rows: list[Case] = []
    product = sorted(itertools.product(*(range(len(c)) for c in columns)), key=lambda r: (sum(r) % 7, r))
    for worth in range(len(sets), 0, -1):  # first the rows that bring most new combinations
        for row in product:
            new = {(chosen, tuple(row[i] for i in chosen)) for chosen in sets} - seen
            if len(new) >= worth:
                seen |= new
                model, family, optimizer, gamma, start = (c[i] for c, i in zip(columns, row, strict=True))
                rows.append(
                    replace(
                        base or Case(),
                        model=model,
                        family=family,
                        optimizer=optimizer,
                        gamma=gamma,
                        start=start,
                    )
                )
    return rows


BESIDE = [
    Case("lstm", "rank-one"),
    Case("lstm", "lora", "adamw", "mean"),
    Case("gru", "rank-one", "adam", 0.3, start=0),
    Case("gru", "lora-frozen", "sgd"),
    Case("decoder", "norm", "adamw", "mean"),
    Case("decoder", "rank-one", "adamw"),
    Case("decoder", "lora", "adamw", 0.3),
    Case("decoder", "lora-frozen", "nesterov", "mean", start=0),
    Case("tied", "lora", "rmsprop"),
    Case("transformer", "lora", "adam", "mean"),
    Case("bn_cnn", "lora"),
    Case("ln_mlp", "lora-factors", "sgd", 0.3),
]
PAIRS = [*covering(2), *BESIDE]
TRIPLES = [*covering(3), *BESIDE]
EVERY = [*(Case(model=model, family=family) for model in CROSSED for family in FAMILIES), *BESIDE]  # models x families

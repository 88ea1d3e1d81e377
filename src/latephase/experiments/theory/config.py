"""What the command computes: every number can be set in YAML or by a flag."""

from __future__ import annotations

from dataclasses import dataclass, field

PARTS = ("steady-state", "minibatches", "start", "multiplicative", "annealing")


@dataclass(frozen=True)
class Quadratic:
    """The additive problem: curvatures 1/i, gradient noise with covariance H, batch size 1, initial error 1.

    Attributes:
        directions: Number of directions of everything that runs for a finite time.
        steady_directions: Number of directions of the steady states.
        lr: Learning rate of the curves, split evenly between base and late-phase weights.
        members: Numbers of members K that are compared.
        late_start: T0 of the second panel of learning curves, in minibatches.
        horizon: Last minibatch of the learning curves.
        budgets: Numbers of minibatches N at which starts are compared.
        tuned_budgets: Numbers of minibatches for which every method's learning rate is tuned.
        annealing: The annealed learning rate: constant up to this fraction of training, linear up to the
            next, and then this factor.
    """

    directions: int = 1000
    steady_directions: int = 10_000
    lr: float = 0.5
    members: list[int] = field(default_factory=lambda: [2, 5, 10])
    late_start: int = 1000
    horizon: int = 100_000
    budgets: list[int] = field(default_factory=lambda: [500, 2000, 10_000])
    tuned_budgets: list[int] = field(default_factory=lambda: [200, 500, 1000])
    annealing: tuple[float, float, float] = (0.5, 0.9, 0.01)


@dataclass(frozen=True)
class Multiplicative:
    """The multiplicative problem: one group of weights with optimum 1 that starts at 0.

    Attributes:
        directions: Number of weights in the group.
        batch_size: Minibatch size.
        base_lr: Learning rate of the base weights.
        late_lr: Learning rate of the factor.
        sgd_lr: Learning rate of plain SGD before the start.
        perturbation: Standard deviation of the members' initial perturbation.
        minibatches: Budget N of the comparison of starts.
        drift_lr: Learning rates of the drift along the solution manifold, at batch size 1 and K = 5.
        drift_rounds: Rounds over which the drift is followed.
    """

    directions: int = 20
    batch_size: int = 16
    base_lr: float = 0.2
    late_lr: float = 0.05
    sgd_lr: float = 0.2
    perturbation: float = 0.02
    minibatches: int = 2400
    drift_lr: float = 0.05
    drift_rounds: int = 3000


@dataclass(frozen=True)
class MonteCarlo:
    """The simulation of the literal algorithm.

    Attributes:
        replicas: Independent runs per point.
        seed: Seed of the generator.
    """

    replicas: int = 400
    seed: int = 0


@dataclass(frozen=True)
class TheoryConfig:
    """Everything that `latephase nqp` computes.

    Attributes:
        quadratic: The additive problem.
        multiplicative: The multiplicative problem.
        monte_carlo: The simulation.
        parts: Which parts to compute: `steady-state`, `minibatches`, `start`, `multiplicative`, `annealing`.
    """

    quadratic: Quadratic = field(default_factory=Quadratic)
    multiplicative: Multiplicative = field(default_factory=Multiplicative)
    monte_carlo: MonteCarlo = field(default_factory=MonteCarlo)
    parts: list[str] = field(default_factory=lambda: list(PARTS))

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"parts = {self.parts} has an unknown or no entry; need some of {', '.join(PARTS)}")
        quadratic = self.quadratic
        for name in ("members", "budgets", "tuned_budgets"):
            numbers = getattr(quadratic, name)
            if not numbers or min(numbers) < 1:
                raise ValueError(f"quadratic.{name} = {numbers} is out of range; need integers >= 1")
        begin, end, final = quadratic.annealing
        if not (0.0 <= begin <= end <= 1.0 and final >= 0.0):
            raise ValueError(
                f"quadratic.annealing = {quadratic.annealing} is out of range; need 0 <= begin <= end <= 1 and a"
                " factor >= 0"
            )
        # The longest round must fit into every budget, or there is nothing to compare.
        rounds = max(quadratic.members)
        for name, least in {
            "quadratic.budgets": min(quadratic.budgets),
            "quadratic.tuned_budgets": min(quadratic.tuned_budgets),
            "quadratic.horizon": quadratic.horizon - quadratic.late_start,
            "multiplicative.minibatches": self.multiplicative.minibatches,
        }.items():
            if least < 10 * rounds:
                raise ValueError(
                    f"{name}: {least} minibatches hold fewer than 10 rounds of {rounds}; need >= {10 * rounds}"
                )

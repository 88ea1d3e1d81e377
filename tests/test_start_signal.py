"""StartSignal on curves whose best start is known exactly, on noisy, annealed and odd ones, and on small runs."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from latephase import LatePhaseValueError, StartSignal
from latephase.decay import Bin, fit

np = pytest.importorskip("numpy")
from latephase import nqp  # noqa: E402


def fed(signal: StartSignal, losses, lr=None, gradient_noise=None) -> StartSignal:
    """The signal after losses; `lr` may be one number or one for each."""
    for index, loss in enumerate(losses):
        rate = lr if lr is None or isinstance(lr, float) else float(lr[index])
        if signal.update(float(loss), rate, gradient_noise):
            break
    return signal


def noisy(curve, sigma: float, seed: int = 0):
    return np.asarray(curve) + sigma * np.random.default_rng(seed).standard_normal(len(curve))


class Quadratic:
    """SGD's exact losses on a noisy quadratic, and what any start costs over the best one."""

    def __init__(self, directions: int, power: float, lr: float, members: int, total: int, mean: float = 1.0) -> None:
        self.problem = nqp.Problem(nqp.power_law(directions, power=power), initial_mean=mean)
        self.lr, self.members, self.total = lr, members, total
        self.late = nqp.LatePhase(members, lr / 2, lr / 2, 1 / members, sgd_lr=lr)
        self.curve = np.asarray(nqp.SGD(lr).expected_loss(self.problem, range(total)).average)
        self.trace = float((self.problem.curvature**2 * self.problem.noise_variance).sum())
        self.best, self.least = nqp.best_start(self.late, self.problem, total)

    def regret(self, start: int) -> float:
        start -= (start - self.total) % self.members
        loss = replace(self.late, start=start).expected_loss(self.problem, self.total).average
        return float(loss / self.least.average - 1)


QUADRATICS = {
    "early": Quadratic(300, 1.0, 0.5, 5, 2000),
    "few rounds": Quadratic(300, 1.0, 0.5, 10, 6000),
    "steep": Quadratic(30, 2.0, 0.5, 5, 2000),
    "late": Quadratic(300, 1.0, 0.1, 10, 6000),
    "from afar": Quadratic(300, 1.0, 0.5, 10, 6000, mean=5.0),
}


@pytest.mark.parametrize("constant", [0.0, 5.0])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", QUADRATICS)
def test_the_start_is_nearly_as_good_as_the_best(name: str, sigma: float, constant: float) -> None:
    """With losses that scatter or do not, and with a constant that no training removes (label noise) or without."""
    case = QUADRATICS[name]
    signal = fed(StartSignal(case.members, case.total), constant + noisy(case.curve, sigma))
    assert signal.started is not None
    assert case.regret(signal.started) < 0.15
    worst = max(case.regret(int(part * case.total)) for part in (0.0, 0.2, 0.4, 0.6, 0.8))
    assert case.regret(signal.started) < worst / 2
    # The steep one falls by less than its scatter and in a dozen minibatches: nothing to see, and the deadline decides.
    assert signal.reason == ("deadline" if name == "steep" and sigma else "losses")


def test_over_all_of_them_it_is_better_than_any_one_fixed_part_of_training() -> None:
    def mean_regret(start) -> float:
        return sum(case.regret(start(case)) for case in QUADRATICS.values()) / len(QUADRATICS)

    def signalled(case: Quadratic) -> int:
        return fed(StartSignal(case.members, case.total), 2.0 + noisy(case.curve, 0.3)).started

    ours = mean_regret(signalled)
    fixed = [mean_regret(lambda case, part=part: int(part * case.total)) for part in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert ours < 0.05
    assert ours < min(fixed)


def test_the_total_losss_own_rule_would_start_at_once() -> None:
    """The finding behind it: within 1 + 1/K of a floor that is mostly label noise is every loss from early on."""
    case = QUADRATICS["late"]
    losses = 20.0 + case.curve
    naive = int(np.argmax(losses <= (1 + 1 / case.members) * losses[-1]))
    assert naive < 0.1 * case.total < fed(StartSignal(case.members, case.total), losses).started
    assert case.regret(naive) > 0.5


@pytest.mark.parametrize("name", QUADRATICS)
def test_gradient_noise_gives_the_noise_floor(name: str) -> None:
    """Where nothing else tells it: eta tr C / 4, SGD's floor to first order in the learning rate."""
    case = QUADRATICS[name]
    signal = fed(StartSignal(case.members, case.total), 3.0 + noisy(case.curve, 0.3), case.lr, case.trace)
    floor = nqp.SGD(case.lr).steady_state(case.problem).average
    assert signal.estimate.noise == pytest.approx(floor, rel=0.35)
    assert case.regret(signal.started) < 0.2


def test_more_gradient_noise_means_an_earlier_start() -> None:
    case = QUADRATICS["from afar"]
    starts = [
        fed(StartSignal(10, case.total, min_rounds=50), case.curve, case.lr, scale * case.trace).started
        for scale in (0.1, 1.0, 30.0)
    ]
    assert starts[0] > starts[1] > starts[2]


def test_without_a_length_it_starts_when_the_excess_has_fallen_to_the_noise_over_k() -> None:
    time = np.arange(6000)
    for scale in (100, 300):
        losses = noisy(1.0 + np.exp(-time / scale), 0.05)
        signal = fed(StartSignal(5), losses)
        reached = scale * math.log(5 / 0.3)
        assert reached < signal.started < 4.5 * reached  # two doublings are part of it
        assert signal.reason == "losses"
        assert signal.estimate.best is None
    assert fed(StartSignal(5), noisy(np.linspace(3, 1, 6000), 0.05)).started is None  # it goes on falling


def test_a_loss_that_does_not_fall_gives_no_signal_but_the_deadline() -> None:
    for losses in (noisy(np.full(3000, 2.3), 0.1), np.full(3000, 2.3), noisy(np.linspace(1, 2, 3000), 0.05)):
        assert fed(StartSignal(5), losses).started is None
        assert fed(StartSignal(5, 3000), losses).reason == "deadline"


def test_a_plateau_at_the_beginning_is_not_the_end() -> None:
    time = np.arange(4000)
    losses = noisy(2.3 / (1 + np.exp((time - 1500) / 200)) + 0.2, 0.05)
    assert fed(StartSignal(5, 4000), losses).started > 1500


def test_an_annealed_learning_rate_tells_the_noise_floor() -> None:
    """Constant, then falling: what the loss falls by with the rate is noise, and not progress."""
    total = 4000
    rates = 0.1 * np.interp(np.arange(total), [0, 1000, 3000], [1.0, 1.0, 0.2])
    done = np.cumsum(rates)
    losses = noisy(1.0 + 0.6 * rates / 0.1 + 1.5 / (1 + done / 2), 0.02)
    signal = StartSignal(4, total, min_rounds=20)
    for index in range(2800):  # no start, to look on
        signal.update(float(losses[index]), float(rates[index]))
        signal.started = signal.reason = None
    assert signal.estimate.noise == pytest.approx(0.6 * rates[signal.estimate.minibatch - 1] / 0.1, rel=0.25)
    assert signal.estimate.excess == pytest.approx(1.5 / (1 + done[signal.estimate.minibatch - 1] / 2), rel=0.6)


def test_the_scale_of_losses_and_of_learning_rates_does_not_matter() -> None:
    case = QUADRATICS["late"]
    losses = 1.0 + noisy(case.curve, 0.1)
    plain = fed(StartSignal(case.members, case.total), losses).started
    for scale, lr in ((1e-6, 1.0), (1e6, 1e-4), (1.0, 30.0)):
        assert fed(StartSignal(case.members, case.total), scale * losses, lr).started == plain


# Deadlines


@pytest.mark.parametrize(
    ("members", "total", "rounds", "deadline"),
    [(5, 2000, 150, 1250), (10, 6000, 150, 4500), (10, 2000, 150, 1000), (10, 100, 150, 50), (1, 400, 0, 400)],
)
def test_enough_rounds_remain_unless_that_is_before_half_of_training(members, total, rounds, deadline) -> None:
    signal = StartSignal(members, total, min_rounds=rounds)
    assert signal.deadline == deadline
    falling = 1 / np.log(np.arange(total) + 3.0)  # never flat
    assert fed(signal, falling).started <= deadline
    if total >= 2000:
        assert total - signal.started >= min(rounds * members, total // 2)


def test_it_waits_for_a_fifth_of_training() -> None:
    losses = noisy(1.0 + np.exp(-np.arange(10_000) / 20), 0.02)
    assert 2000 <= fed(StartSignal(5, 10_000), losses).started < 2600
    assert StartSignal(5).deadline is None


# The interface


def test_it_speaks_up_once() -> None:
    signal = StartSignal(2, 100)
    spoken = [index for index, loss in enumerate(np.linspace(2, 1, 200)) if signal.update(float(loss))]
    assert spoken == [49]
    assert (signal.started, signal.reason, signal.minibatches) == (50, "deadline", 50)


@pytest.mark.parametrize("cut", [1, 10, 63, 64, 65, 700, 1300])
def test_saved_and_resumed_is_uninterrupted(cut: int) -> None:
    case = QUADRATICS["late"]
    losses = (1.0 + noisy(case.curve, 0.2)).tolist()

    def signal() -> StartSignal:
        return StartSignal(case.members, case.total)

    expected = fed(signal(), losses, case.lr, case.trace)
    first = fed(signal(), losses[:cut], case.lr, case.trace)
    second = signal()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # numbers and lists only
    for part in (first, second):  # saving leaves no trace on the one that goes on
        fed(part, losses[cut:], case.lr, case.trace)
        assert part.state_dict() == expected.state_dict()
    again = signal()
    again.load_state_dict(expected.state_dict())
    assert not again.update(1.0)
    assert again.started == expected.started


def test_tensors_numbers_and_losses_that_are_not_finite() -> None:
    case = QUADRATICS["early"]
    losses = 1.0 + noisy(case.curve, 0.1)
    expected = fed(StartSignal(case.members, case.total), losses)
    tensors = StartSignal(case.members, case.total)
    weight = torch.ones((), requires_grad=True)
    for loss in losses:
        if tensors.update(weight * torch.tensor([float(loss)], dtype=torch.float64)):
            break
    assert tensors.started == expected.started
    broken = losses.copy()
    broken[7::50] = np.nan
    broken[20:30] = np.inf
    signal = fed(StartSignal(case.members, case.total), broken)
    assert abs(signal.started - expected.started) <= 0.2 * expected.started
    assert fed(StartSignal(2, 100), [math.nan] * 100).started == 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"members": 0}, r"members: 0.*at least 1"),
        ({"members": 2.5}, r"members: 2\.5"),
        ({"members": 2, "total": 0}, "total: 0"),
        ({"members": 2, "total": True}, "total: True"),
        ({"members": 2, "min_rounds": -1}, r"min_rounds: -1.*at least 0"),
        ({"members": 2, "per_epoch": 0}, "per_epoch: 0"),
    ],
)
def test_bad_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(LatePhaseValueError, match=words):
        StartSignal(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(3),), r"shape \(3,\).*scalar"),
        ((1.0, -0.1), r"lr is -0\.1"),
        ((1.0, math.nan), "lr is nan"),
        ((1.0, 0.1, -1.0), r"gradient_noise is -1\.0"),
        ((1.0, None, 1.0), "gradient_noise needs lr"),
        ((1.0, 0.1, None, 1.0), "gradient_signal = 1.0 needs"),
        ((1.0, 0.1, 1.0, math.inf), "gradient_signal = inf needs"),
    ],
)
def test_bad_updates_change_nothing(arguments: tuple, words: str) -> None:
    signal = fed(StartSignal(2, 100), [2.0, 1.9])
    before = signal.state_dict()
    with pytest.raises(LatePhaseValueError, match=words):
        signal.update(*arguments)
    assert signal.state_dict() == before


def test_a_state_of_other_arguments_is_refused() -> None:
    state = StartSignal(2, 100).state_dict()
    with pytest.raises(LatePhaseValueError, match=r"\[2, 100, 150, None\].*\[3, 100, 150, None\]"):
        StartSignal(3, 100).load_state_dict(state)


# The fit


@pytest.mark.parametrize(("scale", "power"), [(50.0, 1.0), (400.0, 0.5), (20.0, 2.0)])
def test_the_fit_finds_the_curve_it_was_given(scale: float, power: float) -> None:
    times = [float(t) for t in np.geomspace(1, 5000, 48)]
    bins = [Bin(10, 0.7 + 1.3 * (1 + t / scale) ** -power, 0.0, t, 0.1) for t in times]
    found = fit(bins)
    assert math.isnan(found.noise)
    assert found.evidence > 1e4
    ahead = torch.tensor([1.0, 100.0, 1000.0, 5000.0, 10_000.0], dtype=torch.float64)
    exact = 0.7 + 1.3 * (1 + ahead / scale) ** -power
    torch.testing.assert_close(found.asymptote + found.progress * found.left(ahead), exact, rtol=0, atol=0.05)


def test_a_fit_to_a_rising_or_constant_loss_has_no_progress() -> None:
    for slope in (0.0, 1e-3):
        found = fit([Bin(5, 1 + slope * t, 0.01, float(t), 1.0) for t in range(1, 40)])
        assert found.evidence < 1e-6


# Gradients


def balanced(signal: StartSignal, ratio, losses) -> StartSignal:
    """The signal after falling losses and gradients whose square is `ratio(t)` times their sampling noise."""
    for t, loss in enumerate(losses):
        noise = signal_ = None
        if signal.wants_gradients:
            noise, signal_ = 3.0, 3.0 * ratio(t) / 50
        if signal.update(float(loss), 0.1, noise, signal_):
            break
    return signal


FALLING = [2.0 - 1e-3 * t for t in range(1000)]


def test_members_start_when_half_of_the_training_gradient_is_sampling_noise() -> None:
    # Over the last doubling the mean of 4 - t/100 is 2 at about t = 270.
    signal = balanced(StartSignal(5, 2000, per_epoch=50), lambda t: 4 - t / 100, FALLING)
    assert signal.reason == "gradients"
    assert 240 <= signal.started <= 330
    assert signal.estimate.balance <= 2


@pytest.mark.parametrize("per_epoch", [None, 50])
def test_gradients_that_stand_out_of_their_noise_start_nothing(per_epoch: int | None) -> None:
    signal = balanced(StartSignal(5, 2000, per_epoch=per_epoch), lambda t: 2.5, FALLING)
    assert signal.started is None
    if per_epoch is None:
        assert not signal.wants_gradients


def test_gradients_are_not_listened_to_in_the_first_twentieth() -> None:
    signal = balanced(StartSignal(5, 4000, per_epoch=50), lambda t: 0.0, FALLING)
    assert 200 <= signal.started <= 240


@pytest.mark.parametrize("cut", [3, 60, 250])
def test_gradients_are_saved_and_resumed(cut: int) -> None:
    expected = balanced(StartSignal(5, 2000, per_epoch=50), lambda t: 4 - t / 100, FALLING)
    first, second = (StartSignal(5, 2000, per_epoch=50) for _ in range(2))
    balanced(first, lambda t: 4 - t / 100, FALLING[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    balanced(second, lambda t: 4 - (t + cut) / 100, FALLING[cut:])
    assert second.state_dict() == expected.state_dict()


def test_gradients_are_wanted_less_and_less_often() -> None:
    signal = StartSignal(5, 100_000, per_epoch=50)
    wanted = []
    for t in range(6000):
        noise = None
        if signal.wants_gradients:
            wanted.append(t)
            noise = 1.0
        signal.update(3.0, 0.1, noise, noise)
    for n in (500, 1000, 2500):
        assert 22 <= sum(n <= t < 2 * n for t in wanted) <= 26


def test_statistics_of_gradients_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = [torch.tensor([0.5, -1.0]), torch.tensor([[2.0]])]
    scale = [0.3, 2.0]
    pairs = [
        [
            [m + s * torch.randn(m.shape, generator=generator) for m, s in zip(mean, scale, strict=True)]
            for _ in range(2)
        ]
        for _ in range(4000)
    ]
    noise, signal = torch.tensor([latephase.gradient_statistics(*pair) for pair in pairs]).T
    for values, truth in ((noise, 2 * 0.3**2 + 2.0**2), (signal, 0.5**2 + 1 + 4)):
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize(
    "pair", [([], []), ([None], [None]), ([torch.ones(2)], [torch.ones(3)]), ([torch.ones(2)], [])]
)
def test_gradients_that_are_not_of_one_model_are_refused(pair: tuple) -> None:
    with pytest.raises(LatePhaseValueError, match="gradients of one model"):
        latephase.gradient_statistics(*pair)


# Small runs


@pytest.mark.parametrize("label_noise", [0.0, 0.3])
def test_a_real_run_starts_between_a_fifth_and_the_deadline_and_the_members_train(label_noise: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    y = (x @ torch.randn(10, 4)).argmax(1)
    wrong = torch.rand(256) < label_noise
    y[wrong] = torch.randint(4, (int(wrong.sum()),))
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    total, members = 1200, 4
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, 2 * (1 - t / total)))
    late = latephase.LatePhase(model, members)
    late.optimizer(optimizer)
    signal = StartSignal(members, total)
    for _ in range(total):
        chosen = torch.randint(256, (16,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        if signal.update(loss, lr / (1 - 0.9)):
            late.start()
    assert 0.2 * total <= signal.started <= signal.deadline == 600
    assert late.rounds == (total - signal.started) // members
    model = late.collapse().eval()
    assert F.cross_entropy(model(x), y) < (0.2 if label_noise == 0 else 0.9)

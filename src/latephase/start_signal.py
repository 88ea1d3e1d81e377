"""StartSignal: when the members should come to life, read from the training loss."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .decay import Decay, fit
from .errors import LatePhaseValueError
from .loss_bins import LossBins
from .signal_to_noise import SignalToNoise

GROWTH = 2 ** (1 / 8)
"""Every bin of losses ends at so many times the minibatches of the one before."""
DOUBLING = 8
"""Bins of one doubling of the minibatches."""
WINDOW = 48
"""Bins that are fitted: the last six doublings. What was before says little about what is to come."""
ENOUGH = 12
"""Bins before the first judgement."""
SHARE = 0.3
"""F / P where nothing tells the noise floor."""
EARLIEST = 0.2
"""The part of a known length of training that the signal waits at least."""
REPEATS = 2, 4
"""Judgements in a row that start the members: with a known length, and without."""
BALANCE = 2.0
"""Where signal and noise of the training gradient are equal."""
EARLIEST_BALANCE = 0.05
"""The part of a known length of training that is waited at least for that."""
EVIDENCE = 30.0
"""Below this, by `Decay.evidence` of a fit to all bins, the losses have not fallen yet."""


@dataclass(frozen=True)
class Estimate:
    """What a `StartSignal` last read from the losses.

    Args:
        minibatch: when.
        excess: what is left of the decay, in units of the loss.
        noise: F, the loss that minibatch noise costs at the present learning rate.
        best: the best minibatch to start at as it looked then; None where the length of training is not known.
        balance: the ratio of the training gradient's square to its sampling noise; None where it is not measured.
    """

    minibatch: int
    excess: float
    noise: float
    best: int | None
    balance: float | None


class StartSignal:
    r"""Watches the training loss and says when the members should come to life.

    In a quadratic with minibatch noise, members take the factor 1/K off the loss F that the noise costs, and what is
    left of the initial error falls K times more slowly a minibatch. With N minibatches in all, the loss at the end
    after a start at T0 is, but for a constant,

    .. math:: P\, d\Big(T_0 + \frac{N - T_0}{K}\Big) + F \Big(1 - \frac1K\Big)\, d\Big(\frac{N - T_0}{K}\Big)

    where P d(t) is the excess of the loss over its asymptote: the excess goes on from T0 at the pace of rounds, and
    so the noise goes away (as if it were spread over the directions as the initial error was). The signal
    fits P, d and the asymptote to the losses so far and speaks up when the best T0 from here on is now. In one
    direction this is the closed form of `latephase.nqp.optimal_start`: start when the excess has fallen to F / K.
    Without `total` that is the rule itself, and the losses must not have fallen by more than F / K in the last doubling
    of the minibatches either.

    Only the *excess* and F enter: a constant in the loss (label noise, regularisers) changes nothing, where the loss
    as a whole, compared with 1 + 1/K times its floor, would start at once. F cannot be seen in losses at one
    learning rate. It is, in this order: \(\eta \operatorname{tr} C / 4\) from the covariance C of minibatch
    gradients, when that is given; what the loss falls by with the learning rate, when that has changed; else 0.3 P. The
    best start depends on F by a logarithm or a small power, and the valley is flat.

    Losses do not tell what a network learns, and label noise makes the difference: the loss on the training data goes
    on falling when only that sample of data is still being learnt. With `per_epoch`, and the statistics of gradients
    given, the members also start when over the last doubling of the minibatches no more than half of the training
    gradient's square stands out of its sampling noise (`signal_to_noise.py`), whichever comes first.

    With `total` the signal waits for a fifth of training, because an early start is the one mistake that is not
    forgiven outside quadratics (for a twentieth where the gradients speak), and speaks up in time for `min_rounds`
    rounds, whatever the losses are (but not before half of training).

    Args:
        members: K.
        total: N, all minibatches of the training; None where it is not known.
        min_rounds: rounds that are to remain after the start.
        per_epoch: minibatches of one pass over the training data; None leaves the gradients' balance out.

    Attributes:
        minibatches: losses seen.
        started: the minibatch at which the signal spoke up; None before.
        reason: why: "losses", "gradients" or "deadline"; None before.
        estimate: what it last read from the losses, an `Estimate`; None before there are enough.

    Raises:
        LatePhaseValueError: an argument that cannot work.

    Source: the noisy quadratic problem of "Neural networks with late-phase weights" (ICLR 2021); section 2 of the
    theory page has the exact optima.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> late = latephase.LatePhase(model, members=2)
        >>> optimizer = late.optimizer(optimizer)
        >>> signal = latephase.StartSignal(members=2, total=600)
        >>> for _ in range(600):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.randn(8, 3)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     if signal.update(loss, lr=optimizer.param_groups[0]["lr"]):
        ...         late.start()
        >>> late.phase, 120 <= signal.started <= 300
        ('late', True)
    """

    def __init__(
        self, members: int, total: int | None = None, *, min_rounds: int = 150, per_epoch: int | None = None
    ) -> None:
        for name, value, least in (
            ("members", members, 1),
            ("total", total, 1),
            ("min_rounds", min_rounds, 0),
            ("per_epoch", per_epoch, 1),
        ):
            if value is None and name in ("total", "per_epoch"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LatePhaseValueError(f"{name}: {value!r}; use a whole number of at least {least}")
        self.members, self.total, self.min_rounds, self.per_epoch = members, total, min_rounds, per_epoch
        self.minibatches = 0
        self.started: int | None = None
        self.reason: str | None = None
        self.estimate: Estimate | None = None
        self._losses = LossBins()
        self._lr = 1.0
        self._gradients = [0.0, 0.0]  # tr C / 4, summed, and of how many
        self._balance = SignalToNoise(per_epoch or 1)
        self._in_a_row = [0, 0]  # judgements of losses and of gradients

    @property
    def wants_gradients(self) -> bool:
        """Whether the next `update` should have the gradients' statistics, as it should some 24 times a doubling."""
        return self.per_epoch is not None and self.started is None and self.minibatches >= self._balance.due

    @property
    def deadline(self) -> int | None:
        """The minibatch after which the members start in any case; None without `total`."""
        if self.total is None:
            return None
        return max(self.total - self.min_rounds * self.members, self.total // 2)

    def update(
        self,
        loss: float | Tensor,
        lr: float | None = None,
        gradient_noise: float | None = None,
        gradient_signal: float | None = None,
    ) -> bool:
        r"""Take in one minibatch of ordinary training.

        Args:
            loss: its training loss, a number or a scalar tensor on any device (fetched now and then, not every time).
                One that is not finite counts as a minibatch and is otherwise passed over.
            lr: the learning rate of its step, for schedules; None where it is constant. With momentum mu and
                `gradient_noise`, the effective rate lr / (1 - mu).
            gradient_noise: tr C, the trace of the covariance of minibatch gradients, when known; an unbiased estimate
                is \(\|g - g'\|^2 / 2\) for the gradients of two minibatches at the same weights. Now and then is
                enough; `latephase.gradient_statistics` has it.
            gradient_signal: an unbiased estimate of \(\|G\|^2\), the square of the gradient of the whole training
                loss, which is \(g \cdot g'\); beside `gradient_noise`.

        Returns:
            True once: when the members should come to life. False before, and ever after.

        Raises:
            LatePhaseValueError: a loss that is no scalar, a negative rate or noise, or noise without `lr`.
        """
        if self.started is not None:
            return False
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise LatePhaseValueError(
                f"update: the loss has the shape {tuple(loss.shape)}; use a scalar such as its mean"
            )
        if gradient_signal is not None and (gradient_noise is None or not math.isfinite(gradient_signal)):
            raise LatePhaseValueError(
                f"update: gradient_signal = {gradient_signal} needs to be a number, beside gradient_noise"
            )
        for name, value in (("lr", lr), ("gradient_noise", gradient_noise)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise LatePhaseValueError(f"update: {name} is {value}; use a number of at least 0")
        if gradient_noise is not None:
            if lr is None:
                raise LatePhaseValueError("update: gradient_noise needs lr, because its cost is proportional to that")
            self._gradients[0] += gradient_noise / 4
            self._gradients[1] += 1
            if gradient_signal is not None:
                self._balance.add(self.minibatches, gradient_noise, gradient_signal)
        self._lr = 1.0 if lr is None else float(lr)
        self.minibatches += 1
        self._losses.add(loss, self._lr)
        if self.minibatches >= math.ceil((self.minibatches - self._losses.open) * GROWTH):
            self._close()
            judged = self._judge(), self._balanced()
            self._in_a_row = [n + 1 if yes else 0 for n, yes in zip(self._in_a_row, judged, strict=True)]
            for reason, n in zip(("losses", "gradients"), self._in_a_row, strict=True):
                if n >= REPEATS[self.total is None]:
                    self.started, self.reason = self.minibatches, reason
        if self.started is None and self.deadline is not None and self.minibatches >= self.deadline:
            self.started, self.reason = self.minibatches, "deadline"
        return self.started is not None

    def _close(self) -> None:
        """End the open bins of losses and gradients."""
        self._losses.close()
        self._balance.close()

    def _balanced(self) -> bool:
        """Whether no more than half of the training gradient stands out of its noise."""
        ratio = None if self.per_epoch is None else self._balance.ratio()
        early = self.total is not None and self.minibatches < EARLIEST_BALANCE * self.total
        return ratio is not None and ratio <= BALANCE and not early

    def _judge(self) -> bool:
        """Whether now looks like the best time to start."""
        bins = self._losses.closed
        if len(bins) < ENOUGH or bins[-1].time <= 0:
            return False
        decay = fit(bins[-WINDOW:])
        noise = self._noise(decay)
        excess = decay.progress * float(decay.left(torch.tensor(self._losses.time, dtype=torch.float64)))
        best = None if self.total is None else self._best(decay, noise)
        balance = None if self.per_epoch is None else self._balance.ratio()
        self.estimate = Estimate(self.minibatches, excess, noise, best, balance)
        # Losses that have not fallen yet say nothing about when they will have.
        if fit(bins).evidence < EVIDENCE:
            return False
        if best is None or self.total is None:
            return max(excess, self._losses.fell(DOUBLING)) <= noise / self.members
        return best <= self.minibatches and self.minibatches >= EARLIEST * self.total

    def _noise(self, decay: Decay) -> float:
        """F at the present learning rate."""
        if self._gradients[1]:
            return self._lr * self._gradients[0] / self._gradients[1]
        relative = self._lr / max(one.lr for one in self._losses.closed[-WINDOW:])
        return relative * (SHARE * decay.progress if math.isnan(decay.noise) else decay.noise)

    def _best(self, decay: Decay, noise: float) -> int:
        """The minibatch, from now to the deadline, with the lowest loss at the end."""
        assert self.total is not None
        assert self.deadline is not None
        starts = torch.linspace(self.minibatches, max(self.deadline, self.minibatches), 200, dtype=torch.float64)
        rounds = self._lr * (self.total - starts) / self.members
        ends = self._losses.time + self._lr * (starts - self.minibatches) + rounds
        losses = decay.progress * decay.left(ends) + noise * (1 - 1 / self.members) * decay.left(rounds)
        return round(float(starts[int(losses.argmin())]))

    def state_dict(self) -> dict[str, Any]:
        """Everything that resumes the signal: numbers, strings and lists of them."""
        return {
            "settings": [self.members, self.total, self.min_rounds, self.per_epoch],
            "minibatches": self.minibatches,
            "started": self.started,
            "reason": self.reason,
            "estimate": None if self.estimate is None else asdict(self.estimate),
            "losses": self._losses.state_dict(),
            "now": [self._lr, *self._gradients, *self._in_a_row],
            "balance": self._balance.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`.

        Args:
            state_dict: what it returned, of a signal with the same arguments.

        Raises:
            LatePhaseValueError: the state of a signal with other arguments; nothing changed.
        """
        settings = [self.members, self.total, self.min_rounds, self.per_epoch]
        if list(state_dict["settings"]) != settings:
            raise LatePhaseValueError(
                f"load_state_dict: saved with members, total, min_rounds, per_epoch = {list(state_dict['settings'])}; "
                f"this signal has {settings}"
            )
        self.minibatches, self.started, self.reason = (state_dict[key] for key in ("minibatches", "started", "reason"))
        estimate = state_dict["estimate"]
        self.estimate = None if estimate is None else Estimate(**estimate)
        self._losses.load_state_dict(state_dict["losses"])
        self._lr, *gradients, losses, balance = state_dict["now"]
        self._gradients, self._in_a_row = list(gradients), [losses, balance]
        self._balance.load_state_dict(state_dict["balance"])

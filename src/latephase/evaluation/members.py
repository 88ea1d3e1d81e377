"""The members of a late phase as plain state dicts, and what their ensemble adds to their average."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latephase import LatePhase
from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import classified
from latephase.evaluation._result import Result
from latephase.evaluation.metrics import Metrics
from latephase.stage import evaluating


def member_states(late: LatePhase) -> list[OrderedDict[str, Tensor]]:
    """The plain state dict of each member: what it would be as a model of its own.

    Keys and order are the plain model's, factors are folded into their weights, and each loads strictly into a fresh
    model. A tensor that all members have in common is one tensor in all of them, so that K members of a large network
    take little more memory than one: treat them as read-only.

    Args:
        late: A late phase that has started and has not been collapsed.

    Returns:
        K state dicts, in the order of the members.

    Raises:
        LatePhaseError: Before `start()` or after `collapse()`.
        LatePhaseValueError: A key of the model's state dict is not where its module says, because of a hook that
            renames it.

    Example:
        >>> import latephase
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> late = latephase.LatePhase(model, members=2, noise=0.1)
        >>> _ = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> late.start()
        >>> a, b = member_states(late)
        >>> [name for name in a if a[name] is not b[name]]  # noise is relative, and the shift 1.bias is still 0
        ['1.weight', '2.weight', '2.bias']
    """
    states: list[OrderedDict[str, Tensor]] = []
    keys = list(late.averaged_state_dict())
    for k in range(late.members):
        with late.member(k) as model, torch.no_grad():
            state = OrderedDict((key, _tensor(model, key)) for key in keys)
            if states:
                first = states[0]
                state = OrderedDict((n, first[n] if torch.equal(first[n], t) else t.clone()) for n, t in state.items())
            else:
                state = OrderedDict((n, t.clone()) for n, t in state.items())
            states.append(state)
    return states


def _tensor(model: nn.Module, key: str) -> Tensor:
    path, _, name = key.rpartition(".")
    try:
        # Through the attribute, which gives a weight with factors as the model uses it.
        tensor = getattr(model.get_submodule(path), name)
    except AttributeError:
        tensor = None
    if not isinstance(tensor, Tensor):
        raise LatePhaseValueError(
            f"member_states: {key!r} of the state dict is no tensor of {type(model).__name__}; a state-dict hook of "
            "the model renames or adds it, which members cannot be read through"
        )
    return tensor.detach()


@dataclass(frozen=True)
class AverageAgainstEnsemble(Result):
    """What is lost, or won, by averaging weights instead of predictions.

    Attributes:
        samples: How many samples were predicted.
        members: K.
        average: Accuracy, nll, ece and brier of the averaged model.
        ensemble: The same of the mean of the members' probabilities.
        member_mean: The mean over members of the same.
        agreement: How often averaged model and ensemble predict the same class.
        divergence: Mean Kullback-Leibler divergence of the averaged model's probabilities from the ensemble's,
            KL(ensemble || average), in nats.
        distance: Mean total variation distance of the two, 0 to 1.
        from_average: For each member, how often it predicts another class than the averaged model.
        disagreement: How often two members predict different classes, K x K.
        mean_disagreement: The mean of that over pairs of different members; None if there is one member.
    """

    samples: int
    members: int
    average: dict[str, float]
    ensemble: dict[str, float]
    member_mean: dict[str, float]
    agreement: float
    divergence: float
    distance: float
    from_average: tuple[float, ...]
    disagreement: tuple[tuple[float, ...], ...]
    mean_disagreement: float | None


def compare_average(
    late: LatePhase, batches: Iterable[tuple[Tensor, Tensor]], autocast: AbstractContextManager | None = None
) -> AverageAgainstEnsemble:
    """Compare the averaged model, the members' ensemble and the members, in one pass over a data set.

    Args:
        late: A late phase of a classifier that has started and has not been collapsed. Its training flags, and what is
            in the model, are as before afterwards.
        batches: Pairs of inputs and class indices; memory does not grow with their number.
        autocast: Context of the forward passes; none by default.

    Returns:
        Scores of all three, and how much they disagree.

    Raises:
        LatePhaseError: Before `start()` or after `collapse()`.
        LatePhaseValueError: No samples, or labels that do not fit the model's classes.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> late = latephase.LatePhase(model, members=3)
        >>> late.start()
        >>> batches = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> compare_average(late, batches).agreement
        1.0
    """
    comparison = MemberComparison()
    for x, y in batches:
        with autocast or nullcontext():
            logits = late.predict(x)
        classified("compare_average", logits, y, members=True)
        with late.average() as model, evaluating(model), torch.no_grad(), autocast or nullcontext():
            averaged = model(x)
        comparison.update(logits, averaged, y)
    return comparison.compute()


class MemberComparison:
    """Adds up a comparison of members, their ensemble and one model over minibatches; only sums are kept.

    `compare_average` does this for a late phase; here the predictions may come from anywhere.

    Example:
        >>> comparison = MemberComparison()
        >>> members = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two members, one sample, two classes
        >>> comparison.update(members, torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
        >>> comparison.compute().mean_disagreement
        1.0
    """

    def __init__(self) -> None:
        self._scores: list[Metrics] = []
        self._differ = torch.zeros((), dtype=torch.float64)
        self._divergence = self._distance = 0.0

    def update(self, members: Tensor, average: Tensor, labels: Tensor) -> None:
        """Add a minibatch.

        Args:
            members: The members' logits, (K, N, classes).
            average: Logits of the one model that they are compared with, (N, classes).
            labels: Class indices, (N,).

        Raises:
            LatePhaseValueError: Labels or shapes that do not fit.
        """
        classified("MemberComparison", members, labels, members=True)
        classified("MemberComparison", average, labels)
        each = members.double().log_softmax(dim=-1)
        ensemble = each.logsumexp(dim=0) - math.log(len(each))
        own = average.double().log_softmax(dim=-1)
        log_p = torch.cat([each, ensemble[None], own[None]])
        self._scores = self._scores or [Metrics() for _ in log_p]
        for metrics, predicted in zip(self._scores, log_p, strict=True):
            metrics.update(predicted, labels)
        classes = log_p.argmax(dim=-1)
        self._differ = self._differ + (classes[:, None] != classes[None]).sum(dim=-1).cpu()
        p = ensemble.exp()
        # Where the ensemble's probability is 0 so is its part of the divergence.
        self._divergence += float(torch.where(p > 0, p * (ensemble - own), 0.0).sum())
        self._distance += float((p - own.exp()).abs().sum()) / 2

    def compute(self) -> AverageAgainstEnsemble:
        """The comparison of everything added so far.

        Returns:
            Scores of all, and how much they disagree.

        Raises:
            LatePhaseValueError: Nothing was added.
        """
        if not self._scores:
            raise LatePhaseValueError("compare_average: no samples; the data set is empty or its iterator is spent")
        samples, count = self._scores[0].samples, len(self._scores) - 2
        differ = self._differ / samples
        each = [metrics.compute() for metrics in self._scores]
        pairs = count * (count - 1)
        return AverageAgainstEnsemble(
            samples=samples,
            members=count,
            average=each[-1],
            ensemble=each[-2],
            member_mean={name: sum(score[name] for score in each[:count]) / count for name in each[0]},
            agreement=1 - float(differ[-1, -2]),
            divergence=self._divergence / samples,
            distance=self._distance / samples,
            from_average=tuple(differ[-1, :count].tolist()),
            disagreement=tuple(tuple(row) for row in differ[:count, :count].tolist()),
            mean_disagreement=float(differ[:count, :count].sum()) / pairs if pairs else None,
        )

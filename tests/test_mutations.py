"""The judge judges: with the heart of the fast path broken on purpose, it no longer equals the reference."""

from collections.abc import Callable

import pytest

from cases import Case, assert_matches, run, run_reference
from latephase import distributed, members, rounds, steps

TURNS = 7


def another_gamma(patch: pytest.MonkeyPatch) -> None:
    """gamma is 1 whatever was asked for."""
    patch.setattr(rounds.Rounds, "base_gradient", property(lambda self: 1.0, lambda self, value: None), raising=False)


def another_order(patch: pytest.MonkeyPatch) -> None:
    """Member 1 has the first turn of a round."""
    patch.setattr(distributed.Ranks, "member", lambda self, turn: (turn + 1) % 3)


def forgets_all_but_one(patch: pytest.MonkeyPatch) -> None:
    """The second member's base gradients are not added to the first's."""
    patch.setattr(steps, "add_up", lambda sums, gradients: sums.update(dict(gradients) | sums))


def forgets_the_last(patch: pytest.MonkeyPatch) -> None:
    """The last member's base gradients are not part of the sum."""
    original = steps.Steps._hand_over

    def without(self, base, scale):
        for parameter in base:
            parameter.grad = None
        original(self, base, scale)

    patch.setattr(steps.Steps, "_hand_over", without)


def counts_twice(patch: pytest.MonkeyPatch) -> None:
    """A round's sum is carried on into the next round."""
    original = rounds.Rounds.stepped

    def keeps(self, part, **facts):
        part.sums = dict(part.kept) if hasattr(part, "kept") and not part.sums else part.sums
        part.kept = {p: total.clone() for p, total in part.sums.items()}
        original(self, part, **facts)

    patch.setattr(rounds.Rounds, "stepped", keeps)


def shares_moments(patch: pytest.MonkeyPatch) -> None:
    """All members have one optimizer state."""
    patch.setattr(steps.Steps, "park", lambda self, member: None)
    patch.setattr(steps.Steps, "bring", lambda self, member: None)


def plain_means(patch: pytest.MonkeyPatch) -> None:
    """BatchNorm is averaged tensor by tensor."""
    original = members.Members._compute
    patch.setattr(members.Members, "_compute", lambda self, fold: original(self, fold=False))


def shares_statistics(patch: pytest.MonkeyPatch) -> None:
    """Running statistics stay in the model when the member changes."""
    original = members.Members.bring

    def without(self, content):
        kept = {name: live.clone() for name, live in zip(self.names, self.live, strict=True) if "running" in name}
        original(self, content)
        for name, live in zip(self.names, self.live, strict=True):
            if name in kept:
                live.copy_(kept[name])

    patch.setattr(members.Members, "bring", without)


MUTANTS = [
    another_gamma,
    another_order,
    forgets_all_but_one,
    forgets_the_last,
    counts_twice,
    shares_moments,
    plain_means,
    shares_statistics,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda f: f.__name__)
def test_a_broken_fast_path_is_noticed(mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
    case = Case(optimizer="adam", gamma="mean")
    judge = run_reference(case, TURNS)
    assert_matches(run(case, TURNS)[2], judge, 1e-12)
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        _, _, late = run(case, TURNS)
        with pytest.raises(AssertionError):
            assert_matches(late, judge, 1e-12)

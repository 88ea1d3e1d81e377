"""Whose turn it is: the order of members over optimizers, steps and ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from .distributed import Ranks
from .errors import LatePhaseError, LatePhaseValueError
from .members import AVERAGE, Members
from .parallel import ParallelPass
from .steps import Steps


class Rounds:
    """A round is one turn for every member (for every group of `world` members, when ranks share them).

    Args:
        late: the late-phase weights by name.
        joins: for each factor that a family added, the weight whose optimizer group it joins.
        base_gradient: gamma, the factor on the sum of the members' base gradients.
        copy_state: whether members start from a copy of the optimizer's state.
        in_place: gather base gradients during backward.
        ranks: who trains which member.
    """

    def __init__(
        self,
        late: dict[str, nn.Parameter],
        joins: dict[nn.Parameter, nn.Parameter],
        base_gradient: float,
        copy_state: bool,
        in_place: bool,
        ranks: Ranks,
    ) -> None:
        self.late, self.joins, self.ranks = late, joins, ranks
        self.base_gradient, self.copy_state, self.in_place = base_gradient, copy_state, in_place
        self.turn = 0
        self.completed = 0
        self.steps: list[Steps] = []
        self.members: Members | None = None
        self.parallel: ParallelPass | None = None
        self.settle: Callable[[], None] = lambda: None
        """Brings in what belongs into the model, if that is not the member of the turn."""
        self.resumed: Mapping[str, Any] | None = None
        """The state that training resumed from, until the first step after that."""

    @property
    def alive(self) -> bool:
        """Whether the members have come to life."""
        return self.members is not None

    @property
    def member(self) -> int:
        """The member whose turn it is on this rank."""
        return self.ranks.member(self.turn)

    @property
    def due(self) -> bool:
        """Whether the member whose turn it is, is in the model."""
        return self.members is not None and self.members.content == self.member

    @property
    def turns(self) -> int:
        """Turns in a round."""
        return self.members.count // self.ranks.world if self.members is not None else 1

    @property
    def last(self) -> bool:
        """Whether this is the round's last turn."""
        return self.turn == self.turns - 1

    @property
    def several(self) -> bool:
        """Whether a turn waits for more than one optimizer."""
        return sum(steps.drives for steps in self.steps) > 1

    @property
    def fresh(self) -> bool:
        """Whether a round is about to begin: nothing of it has happened yet."""
        return self.turn == 0 and not any(steps.done or steps.sums for steps in self.steps)

    def add(self, optimizer: Optimizer, drives: bool) -> Steps:
        """Install the hooks on an optimizer; factors join the groups of their weights.

        Raises:
            LatePhaseValueError: an optimizer that cannot work.
        """
        if isinstance(optimizer, LBFGS):
            raise LatePhaseValueError(
                "LBFGS evaluates its closure several times in a step; use a first-order optimizer"
            )
        if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
            raise LatePhaseValueError(
                "ZeroRedundancyOptimizer steps through an optimizer of its own, of which every rank has another; use a "
                "plain optimizer, and fully_shard where memory is short"
            )
        for steps in self.steps:
            if steps.optimizer is optimizer:
                return steps
        self._leave(set(_parameters(optimizer)))
        held = {p for each in (optimizer, *(steps.optimizer for steps in self.steps)) for p in _parameters(each)}
        for factor, weight in self.joins.items():
            for group in optimizer.param_groups:
                if factor not in held and any(p is weight for p in group["params"]):
                    group["params"].append(factor)
        steps = Steps(optimizer, self, set(self.late.values()), drives=drives, in_place=self.in_place)
        self.steps.append(steps)
        if self.members is not None:
            steps.come_to_life(self.members.count, self.copy_state, self.member)
        return steps

    def _leave(self, held: set[nn.Parameter]) -> None:
        """Take factors that joined their weight in an optimizer out of it: their user has them in another."""
        for steps in self.steps:
            for factor in held & self.joins.keys() & set(_parameters(steps.optimizer)):
                for group in steps.optimizer.param_groups:
                    group["params"] = [p for p in group["params"] if p is not factor]
                steps.optimizer.state.pop(factor, None)
                for state in steps.states:
                    state.pop(factor, None)

    def check_held(self) -> None:
        """Refuse to start where a trainable late-phase weight is in none of the optimizers.

        Raises:
            LatePhaseError: that, with the names.
        """
        held = {p for steps in self.steps for p in steps.late}
        missing = [name for name, p in self.late.items() if p.requires_grad and p not in held]
        if self.steps and missing:
            raise LatePhaseError(
                f"start(): no optimizer of this phase holds {', '.join(missing[:5])}"
                + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                + "; call late.optimizer(...) for each optimizer, or set requires_grad=False on frozen weights"
            )

    def come_to_life(self, members: Members) -> None:
        """Give the members their optimizer states; from here on steps are turns."""
        self.members, self.turn, self.completed = members, 0, 0
        for steps in self.steps:
            steps.come_to_life(members.count, self.copy_state, self.member)

    def check_gradients(self) -> None:
        """Refuse gradients that came from another member.

        Raises:
            LatePhaseError: the last backward was of a member that a context had pinned.
        """
        assert self.members is not None
        graded = self.members.graded
        if graded not in (None, AVERAGE, self.member) and self.parallel is None:
            raise LatePhaseError(
                f"optimizer.step() with gradients of member {graded}, in the turn of member {self.member}; a backward "
                "inside late.member(k) is for looking at gradients: zero_grad() and a backward of the turn come next"
            )
        self.members.graded = None

    def check_step(self, steps: Steps) -> None:
        """Refuse a step that would update the wrong values.

        Raises:
            LatePhaseError: the average, or another member, is in the model; or this optimizer has had its turn.
        """
        assert self.members is not None
        expected = self.members.content == self.member or (
            self.parallel is not None and self.members.content != AVERAGE
        )
        if not expected:
            inside = "the average" if self.members.content == AVERAGE else f"member {self.members.content}"
            raise LatePhaseError(
                f"optimizer.step() while {inside} is in the model and it is member {self.member}'s turn; call "
                "model.train(), and leave late.member() and late.average(), before stepping"
            )
        if steps.done and steps.drives:
            waiting = [type(s.optimizer).__name__ for s in self.steps if s.drives and not s.done]
            raise LatePhaseError(
                f"{type(steps.optimizer).__name__} steps twice in the turn of member {self.member} while "
                f"{', '.join(waiting)} has not stepped; step each once, or register the other with drives=False"
            )

    def sum_over_ranks(self, gradients: list[Tensor | None], like: list[nn.Parameter]) -> list[Tensor | None]:
        """Add up what every rank gathered in a round."""
        return self.ranks.sum(gradients, like)

    def replay(self, steps: Steps) -> bool:
        """After a parallel pass: give all members but the last their step; see `ParallelPass.replay`."""
        if self.parallel is None or not self.parallel.has_gradients:
            return False
        self.turn = self.turns - 1
        self.parallel.replay(steps)
        return True

    def stepped(self, steps: Steps, moved: bool) -> None:
        """End the turn when every optimizer that drives it has stepped, and one of them had gradients."""
        steps.done, steps.moved = True, steps.moved or moved
        if moved and self.members is not None:
            self.members.changed()  # fused optimizers update weights in place without counting that as a change
        drivers = [s for s in self.steps if s.drives]
        if all(s.done for s in drivers):
            if any(s.moved for s in drivers):
                self._next()
            for each in self.steps:
                each.done = each.moved = False

    @torch.no_grad()
    def _next(self) -> None:
        members = self.members
        assert members is not None
        member, turn, ends = self.member, self.turn, self.last
        members.changed()
        self.turn = 0 if ends else turn + 1
        self.completed += ends
        if self.parallel is not None:
            self.parallel.close()
            self.parallel = None
        if members.count == 1:
            return
        members.park()
        self.ranks.exchange(members.stacks, turn)
        if members.sites.sharders:
            # The average of a sharded layer is put together from all ranks, so that they must agree on its statistics.
            self.ranks.share_first(members.statistics(member))
        for steps in self.steps:
            steps.park(member)
            steps.bring(self.member)
        members.bring(self.member)
        self.settle()

    def release(self) -> None:
        """Take all hooks off; the optimizers keep the mean of the members' states for the averaged weights."""
        for steps in self.steps:
            if self.members is not None:
                steps.average_states(self.member)
            steps.remove()
            for group in steps.optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p not in self.joins]
            for factor in self.joins:
                steps.optimizer.state.pop(factor, None)
        self.steps.clear()
        self.members = None


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]

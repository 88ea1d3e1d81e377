"""What exists when: from attachment over the members' life to the collapse."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint
from .control import Control, Loaded, Loading
from .distributed import Unsynced, refuse_join
from .errors import LatePhaseError
from .families import Installation
from .members import AVERAGE, Members, Sites
from .parallel import ParallelPass, Stacks
from .rounds import Rounds
from .sharding import check_sharding, group_of, is_sharded
from .stage import Stage, apply, compare


class Life:
    """One phase of one model, behind the public `LatePhase`.

    Args:
        model: the user's model, unwrapped.
        wrapper: the DistributedDataParallel around it, if there is one.
        count: K.
        installations: what the families put into the model.
        sites: every tensor that the members do not share.
        rounds: the order of turns.
        noise: sigma_0.
        generator: draws the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapper: DistributedDataParallel | None,
        count: int,
        installations: list[Installation],
        sites: Sites,
        rounds: Rounds,
        noise: float,
        generator: torch.Generator,
    ) -> None:
        self.model, self.wrapper, self.count = model, wrapper, count
        self.installations, self.sites, self.rounds = installations, sites, rounds
        self.noise, self.generator = noise, generator
        self.phase = "attached"
        self.stage: Stage | None = None
        self.handles: list[Any] = [
            model.register_load_state_dict_pre_hook(Loading(self._loading)),
            model.register_load_state_dict_post_hook(Loaded(self._loaded)),
        ]

    def alive(self, call: str) -> None:
        """Refuse a call after the collapse."""
        if self.phase == "collapsed":
            raise LatePhaseError(f"{call} of a collapsed phase; attach a new LatePhase to the model")

    def late(self, call: str) -> Stage:
        """The stage; refuse a call before the start."""
        self.alive(call)
        if self.stage is None:
            raise LatePhaseError(f"{call} before start(): there are no members yet")
        return self.stage

    def settle(self) -> None:
        """Bring in what belongs into the model."""
        if self.stage is not None:
            self.stage.settle()

    def follow(self) -> None:
        """Go on with the sharded weights that `fully_shard` has put into the places of the late-phase ones.

        Raises:
            LatePhaseError: it came too late, or sharding cannot go together with what this phase does.
        """
        if self.phase == "collapsed":
            return
        sharded = self.sites.sharded(self.model)
        if sharded and (self.stage is not None or self.rounds.steps):
            late = "start()" if self.stage is not None else "late.optimizer(...)"
            raise LatePhaseError(
                f"fully_shard() after {late} has replaced {', '.join(list(sharded)[:5])}; shard the model first, then "
                "build the optimizer from its parameters, and call late.optimizer(...) and start() after that"
            )
        for known in (self.sites.weights, *(part.parameters for part in self.installations)):
            known.update({name: weight for name, weight in sharded.items() if name in known})
        check_sharding(self.model, self.rounds.ranks.spread, bool(self.rounds.joins), self.rounds.in_place)
        if self.rounds.ranks.group is None:
            self.rounds.ranks.group = group_of(self.model.parameters())

    def start(self) -> None:
        """See `LatePhase.start`."""
        if self.phase != "attached":
            raise LatePhaseError(f"start() of a phase that is {self.phase}; it starts once, and a new phase anew")
        if self.rounds.in_place and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise LatePhaseError("accumulate='in_place' works in one process; use accumulate='copy' with several ranks")
        self.follow()
        self.sites.renew(self.model, self.installations)
        self.rounds.check_held()
        self.rounds.ranks.share_first(list(self.sites.statistics.values()))
        members = Members(self.sites, self.count)
        if self.noise:
            members.perturb(self.noise, self.generator)
        whole = [i for i, weight in enumerate(self.sites.weights.values()) if not is_sharded(weight)]
        self.rounds.ranks.check_equal([members.stacks[i] for i in whole], [members.names[i] for i in whole])
        self._enter(members)
        # Members equal to what is in the model need no copy, which would invalidate a graph that awaits its backward.
        if self.noise:
            members.bring(self.rounds.member)
        self.settle()
        self.rounds.resumed = None  # what was resumed before this start has no members to restore

    def _enter(self, members: Members) -> None:
        self.rounds.come_to_life(members)
        members.content = self.rounds.member
        self.stage = Stage(self.model, members, lambda: self.rounds.member)
        self.rounds.settle = self.stage.settle
        self.control = Control(self.model, members, self.settle)
        self.stacks = Stacks(self.model, members)
        self.phase = "late"
        if self.rounds.ranks.several():
            self.handles.append(self.model.register_forward_pre_hook(refuse_join))
        if self.rounds.ranks.spread:
            self.unsynced = Unsynced(self.wrapper)
            self.handles.append(self.model.register_forward_pre_hook(Unsynced.check))

    def collapse(self, fold: bool, check: Any) -> None:
        """See `LatePhase.collapse`."""
        self.alive("collapse()")
        if self.stage is not None:
            if self.stage.pins:
                raise LatePhaseError("collapse() inside late.member() or late.average(); leave the context first")
            averages = self.stage.members.average(fold)
            self.stage.members.check_finite(averages)
            self.stage.members.show(AVERAGE)
            self.stage.members.put(averages)
        try:
            before = apply(self.model, check) if check is not None else None
        except BaseException:
            if self.stage is not None:
                self.stage.members.bring(self.stage.wanted())
            raise
        if self.stage is not None:
            self.control.remove()
            if self.rounds.ranks.spread:
                self.unsynced.undo()
        self.rounds.release()
        for handle in self.handles:
            handle.remove()
        for part in self.installations:
            part.fold()
        self.stage, self.phase = None, "collapsed"
        if check is not None:
            compare(before, apply(self.model, check))

    def check_round(self, call: str) -> None:
        """Refuse a call that trains all members, where they cannot have their turns one after the other.

        Raises:
            LatePhaseError: no members yet or no more; members over ranks; another value than the turn's member is in
                the model, or stays in it; a round that has begun.
        """
        stage, rounds = self.late(call), self.rounds
        if rounds.ranks.world > 1:
            raise LatePhaseError(f"{call} trains all members on this rank; use it without members_over_ranks")
        if stage.pins or stage.members.content != rounds.member:
            raise LatePhaseError(
                f"{call} trains, and the model is in eval mode or pinned; call model.train(), and leave late.member() "
                "and late.average()"
            )
        if not rounds.fresh:
            stepped = [f"after a step of {type(steps.optimizer).__name__}" for steps in rounds.steps if steps.done]
            where = ", ".join((f"turn {rounds.turn} of {self.count}", *stepped))
            raise LatePhaseError(f"{call} in the middle of a round ({where}); finish the round first")

    def parallel(self, args: tuple[Any, ...], kwargs: dict[str, Any], mean: bool) -> Any:
        """See `LatePhase.parallel`."""
        stage, rounds = self.late("parallel()"), self.rounds
        if stage.members.sites.sharders:
            raise LatePhaseError("parallel() needs whole weights, and FSDP2 shards these; train the members in turn")
        waiting = rounds.parallel
        if waiting is not None and (waiting.dropped or not torch.is_grad_enabled()):
            waiting.close()
            waiting = rounds.parallel = None
        if waiting is not None:
            raise LatePhaseError(
                "parallel() twice before optimizer.step(); step, or zero_grad() to drop the first pass"
            )
        self.check_round("parallel()")
        if torch.is_grad_enabled() and not any(weight.requires_grad for weight in rounds.late.values()):
            raise LatePhaseError("parallel() with late-phase weights that are all frozen; train the members in turn")
        self.control.guard.off = True
        try:
            outputs = self.stacks.forward(args, kwargs)
        finally:
            self.control.guard.off = False
        if torch.is_grad_enabled():
            for steps in rounds.steps:  # turns of a single member, which never changes, do not note where its state is
                steps.park(rounds.member)
            rounds.parallel = ParallelPass(self.stacks, float(self.count) if mean else 1.0)
        return outputs

    def state(self) -> dict[str, Any]:
        """See `LatePhase.state_dict`."""
        members = self.stage.members if self.stage is not None else None
        state = checkpoint.save(self.model, self.installations, members, self.rounds, self.generator)
        return {"phase": self.phase, "members": self.count, **state}

    def load(self, state: Mapping[str, Any]) -> None:
        """See `LatePhase.load_state_dict`."""
        self.alive("load_state_dict()")
        checkpoint.check_kind(state)
        late = state["phase"] == "late"
        factors = {n: p for part in self.installations for n, p in part.parameters.items() if p in part.weight_of}
        own, shared = (self.sites.own(), self.sites.shared) if late else (factors, {})
        checkpoint.check(state, self.model, self.phase, self.count, own, shared, self.rounds)
        self.restore(state)
        self.rounds.resumed = state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state; unlike after `load`, what the model or an optimizer loads next counts again."""
        if state["phase"] == "late" and self.stage is None:
            self.follow()
            self.sites.renew(self.model, self.installations)
            self.rounds.check_held()
            self._enter(Members(self.sites, self.count))
        members = self.stage.members if self.stage is not None else None
        checkpoint.restore(state, self.installations, members, self.rounds, self.generator)
        self.settle()

    def again(self) -> None:
        """Restore once more: the model or an optimizer has just loaded its own state over what was resumed."""
        if self.rounds.resumed is not None:
            self.restore(self.rounds.resumed)

    def _loading(self) -> None:
        if self.stage is not None:
            self.stage.members.expect()

    def _loaded(self) -> None:
        if self.stage is not None:
            self.stage.members.replace()
        self.again()

"""LatePhase: late-phase weights on the user's model, from attachment to the one averaged model."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .arguments import choice, gamma, torch_optimizer, unwrap
from .distributed import Ranks
from .errors import LatePhaseError, LatePhaseValueError
from .families import Family, install
from .life import Life
from .members import AVERAGE, Sites
from .parallel import ParallelModule
from .rounds import Rounds
from .sharding import check_sharding

AnyOptimizer = TypeVar("AnyOptimizer")


class LatePhase:
    r"""Late-phase weights for a PyTorch model.

    From `start()` on, K members share all weights but the late-phase ones. They take turns in the unchanged model, one
    minibatch each; the base weights take one step a round, on gamma times the sum of the members' gradients
    (Algorithm 1 of "Neural networks with late-phase weights", ICLR 2021):

    .. math:: \phi_k \leftarrow U_\phi(\phi_k, \nabla_{\phi_k} L_k), \qquad
              \theta \leftarrow U_\theta\Big(\theta, \gamma \sum_k \nabla_\theta L_k\Big)

    `model.eval()` and `model.state_dict()` always mean the averaged model; `collapse()` ends with it alone.

    Args:
        model: any module, wrapped (DDP, torch.compile) or not; attaching changes nothing but, for families that add
            factors, registers these.
        members: K, at least 1.
        weights: which weights each member has for itself: names ("norm", "head", "full", "rank-one", "hypernetwork",
            "lora"), family objects, or a mix. BatchNorm running statistics are always each member's own.
        noise: sigma_0; every late-phase tensor of every member gets Gaussian noise of standard deviation sigma_0 times
            the tensor's root mean square at `start()`.
        base_gradient: gamma, a factor on the sum of the K minibatch gradients: "sum" (1), "mean" (1/K) or a number.
        optimizer_state: "copy" gives every member the optimizer's state at `start()`, "reset" starts it fresh.
        seed: of the private generator that draws the noise; the same on all ranks.
        accumulate: "copy" adds base gradients up in tensors of their own; "in_place" gathers them during backward and
            needs no second copy, for loops in one process with neither gradient scaler nor clipping.
        members_over_ranks: rank r trains member (turn * world + r) instead of every rank the same one. Use bfloat16
            there: a gradient scaler would let one rank skip a step that the others take.
        process_group: the ranks for that; None is the default group.

    Raises:
        LatePhaseValueError: an argument that cannot work; the model is untouched.
        LatePhaseError: a wrapper or a phase that is on the model cannot go together with this one.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> late = latephase.LatePhase(model, members=2)
        >>> optimizer = late.optimizer(optimizer)
        >>> late.start()
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 3)).square().mean().backward()
        ...     optimizer.step()
        >>> late.rounds, late.phase, late.late_names()[:2]
        (2, 'late', ['1.weight', '1.bias'])
        >>> late.predict(torch.randn(5, 3)).shape
        torch.Size([2, 5, 2])
        >>> with late.member(1):
        ...     outputs = model(torch.randn(5, 3))
        >>> saved, plain = late.state_dict(), late.averaged_state_dict()
        >>> type(late.collapse()).__name__
        'Sequential'
    """

    def __init__(
        self,
        model: nn.Module,
        members: int = 10,
        weights: str | Family | Iterable[str | Family] = ("norm", "head"),
        noise: float = 0.0,
        base_gradient: str | float = "sum",
        *,
        optimizer_state: str = "copy",
        seed: int = 0,
        accumulate: str = "copy",
        members_over_ranks: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if isinstance(members, bool) or not isinstance(members, int) or members < 1:
            raise LatePhaseValueError(f"members: {members!r}; use a whole number of at least 1")
        if not (math.isfinite(noise) and noise >= 0):
            raise LatePhaseValueError(f"noise: {noise}; use a number of at least 0")
        factor = gamma(base_gradient, members)
        copy_state = choice("optimizer_state", optimizer_state, ("copy", "reset")) == "copy"
        in_place = choice("accumulate", accumulate, ("copy", "in_place")) == "in_place"
        ranks = Ranks(members, members_over_ranks, process_group)
        inner, wrapper = unwrap(model)
        check_sharding(inner, members_over_ranks, factors=False, in_place=in_place)
        if hasattr(inner.__dict__.get("train"), "members_share_the_model"):
            raise LatePhaseError("the model already has members that share it; collapse that phase first")
        installations = install(inner, weights)
        joins = {factor: weight for part in installations for factor, weight in part.weight_of.items()}
        if joins and wrapper is not None and not ranks.spread:
            for part in installations:
                part.remove()
            raise LatePhaseError(
                "weights: DistributedDataParallel does not know factors that are added after wrapping, and would not "
                "synchronise their gradients; attach LatePhase first and wrap the model then"
            )
        self.model = inner
        self.members = members
        self._given = model
        self._sites = Sites.of(inner, installations)
        self._rounds = Rounds(self._sites.weights, joins, factor, copy_state, in_place, ranks)
        generator = torch.Generator().manual_seed(seed)
        self._life = Life(inner, wrapper, members, installations, self._sites, self._rounds, noise, generator)
        for part in installations:
            part.commit()

    # Names and groups

    def late_names(self) -> list[str]:
        """Dotted names of the late-phase weights."""
        return list(self._sites.weights)

    def late_parameters(self) -> list[nn.Parameter]:
        """The late-phase weights: the Parameters in which the members take turns. Factors end with the collapse."""
        self._life.follow()
        weights = list(self._sites.weights.values())
        present = set(self.model.parameters() if self.phase == "collapsed" else weights)
        return [weight for weight in weights if weight in present]

    def base_parameters(self) -> list[nn.Parameter]:
        """All other weights of the model, shared by the members."""
        late = set(self.late_parameters())
        return [parameter for parameter in self.model.parameters() if parameter not in late]

    def parameter_groups(
        self,
        lr: float | None = None,
        weight_decay: float | None = None,
        late_lr: float | None = None,
        late_weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Two parameter groups for an optimizer, base weights and late-phase weights, with rates of their own.

        Args:
            lr: learning rate of the base weights; None leaves it to the optimizer's default.
            weight_decay: weight decay of the base weights.
            late_lr: learning rate of the late-phase weights; None means `lr`.
            late_weight_decay: weight decay of the late-phase weights; None means `weight_decay`.

        Returns:
            The groups, base weights first; a group that would be empty is left out.
        """
        base = {"params": self.base_parameters(), "lr": lr, "weight_decay": weight_decay}
        late = {
            "params": self.late_parameters(),
            "lr": lr if late_lr is None else late_lr,
            "weight_decay": weight_decay if late_weight_decay is None else late_weight_decay,
        }
        return [{k: v for k, v in group.items() if v is not None} for group in (base, late) if group["params"]]

    @property
    def phase(self) -> str:
        """Where the phase is in its life, "attached", "late" or "collapsed"."""
        return self._life.phase

    @property
    def turn(self) -> int:
        """The turn of the present round, from 0."""
        return self._rounds.turn

    @property
    def rounds(self) -> int:
        """Rounds completed since the start."""
        return self._rounds.completed

    # Life

    def optimizer(self, optimizer: AnyOptimizer, drives: bool = True) -> AnyOptimizer:
        """Install the step hooks on an optimizer; it stays the same object.

        Args:
            optimizer: a torch optimizer over the model's parameters, or a wrapper (Lightning's, Accelerate's) of one.
            drives: whether a turn waits for its step. An optimizer with drives=False steps at its own rhythm: its base
                weights step at its first step in a round's last turn.

        Returns:
            The same optimizer.

        Raises:
            LatePhaseValueError: no torch optimizer, one that holds none of the model's parameters, or LBFGS.
        """
        self._life.alive("optimizer()")
        self._life.follow()
        inner = torch_optimizer(optimizer, self.model)
        if all(steps.optimizer is not inner for steps in self._rounds.steps):
            self._rounds.add(inner, drives)
            self._life.handles.append(inner.register_load_state_dict_post_hook(lambda _: self._life.again()))
            self._life.again()
        return optimizer

    def start(self) -> None:
        """Bring the members to life (T0): each gets the current weights, statistics and optimizer state, plus noise.

        Raises:
            LatePhaseError: called twice or after `collapse()`; a late-phase weight that no registered optimizer
                holds; ranks that hold different values.
        """
        self._life.start()

    def collapse(self, statistics: str = "fold", check: Any = None) -> nn.Module:
        """End the phase: the average stays in the model, hooks, members and factors go.

        The base gradients of an unfinished round are dropped. The optimizers keep the base weights' state, and for the
        late-phase weights the mean of the members' states.

        Args:
            statistics: "fold" averages the outputs of normalisation layers exactly; "mean" takes the plain mean of
                their weights and running statistics, to be followed by `recompute_statistics`.
            check: a batch (a tensor, a tuple whose first element is the input, or a dict of keyword arguments) on which
                the outputs of the averaged model before and after are compared.

        Returns:
            The object that was given as the model, in the mode it was in.

        Raises:
            LatePhaseError: called twice; a member that is NaN or infinite where the average would be so too, with
                nothing changed; or the outputs on `check` differ by more than rounding.
        """
        fold = choice("statistics", statistics, ("fold", "mean")) == "fold"
        self._life.collapse(fold, check)
        return self._given

    # What is in the model

    def member(self, k: int) -> AbstractContextManager[nn.Module]:
        """Context in which member k is in the model, in whatever mode the model is.

        Args:
            k: the member, 0 to K - 1.

        Returns:
            A context manager that gives the model; what was in it comes back at the end.

        Raises:
            LatePhaseError: before `start()` or after `collapse()`.
            LatePhaseValueError: no such member.
        """
        stage = self._life.late("member()")
        if not 0 <= k < self.members:
            raise LatePhaseValueError(f"member({k}): the members are 0 to {self.members - 1}")
        return stage.pinned(k)

    def average(self) -> AbstractContextManager[nn.Module]:
        """Context in which the average is in the model, in whatever mode the model is; see `member`."""
        return self._life.late("average()").pinned(AVERAGE)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of every member in eval mode, without gradients.

        Args:
            args: passed to the model.
            kwargs: passed to the model.

        Returns:
            The model's output with a new first dimension: (K, N, ...), for every tensor of a tuple, list or dict.

        Raises:
            LatePhaseError: before `start()` or after `collapse()`.
        """
        return self._life.late("predict()").predict(args, kwargs)

    def averaged_state_dict(self) -> "OrderedDict[str, Tensor]":
        """The plain model's state dict with averaged values: its keys, in its order; a copy."""
        state = self.model.state_dict()
        return OrderedDict((k, v.detach().clone() if isinstance(v, Tensor) else v) for k, v in state.items())

    # All members at once

    def parallel(self, *args: Any, reduction: str = "mean", **kwargs: Any) -> Any:
        """Outputs of all members in one pass; with one backward and one step of the optimizer it is a whole round.

        Args:
            args: the model's inputs; every tensor has K*B samples, of which k*B to (k+1)*B are member k's minibatch.
            reduction: how the loss that follows treats the K*B outputs: their "mean", or their "sum".
            kwargs: the model's keyword inputs, split in the same way.

        Returns:
            The model's outputs for all samples, in the order of the batch.

        Raises:
            LatePhaseError: in the middle of a loop round, twice before a step, in eval mode, over ranks, or with a
                module that `torch.vmap` cannot run, such as `nn.LSTM`.
            LatePhaseValueError: a batch that cannot be split into K equal minibatches.
        """
        mean = choice("reduction", reduction, ("mean", "sum")) == "mean"
        return self._life.parallel(args, kwargs, mean)

    def compile_parallel(self, **options: Any) -> None:
        """Compile the pass of all members. A compiled model is compiled for the loop; `parallel` runs it uncompiled.

        Args:
            options: of `torch.compile`, such as mode or fullgraph.

        Raises:
            LatePhaseError: before `start()` or after `collapse()`.
        """
        self._life.late("compile_parallel()")
        self._life.stacks.compile(options)

    def parallel_module(self) -> ParallelModule:
        """`parallel` as a module whose parameters are the base weights and the members' stacks, for DDP to wrap."""
        self._life.late("parallel_module()")
        return ParallelModule(self.parallel, self._life.stacks)

    # Saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """Everything that the model's and the optimizers' state dicts do not hold; a copy.

        With these two it resumes anywhere, in the middle of a round too, bit for bit. With members over ranks a
        collective call.

        Returns:
            Tensors, numbers and strings in dicts and lists: the phase, the turn, every member's weights, statistics
            and optimizer state, the round's sum of base gradients and the generator.
        """
        return self._life.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`, before or after the model and the optimizers load theirs.

        Args:
            state_dict: what `state_dict()` returned, of a phase with the same members and weights.

        Raises:
            LatePhaseError: after `collapse()`, or when the phase has started and the state is from before its start.
            LatePhaseValueError: a state of another K, other late-phase weights or other optimizers; nothing changed.
        """
        self._life.load(state_dict)

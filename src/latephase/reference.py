"""Algorithm 1 as it is written: K deep copies of the model, K + 1 optimizers, a loop.

Slow and obvious on purpose. It shares no code with the rest of the package, so that the tests can hold the
fast path against it; use it to check a training loop of your own in the same way.
"""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.optim import Optimizer

__all__ = ["Reference"]

# The options that schedulers change while training runs.
SCHEDULED = ("lr", "momentum", "betas", "weight_decay")


class Reference:
    r"""Late-phase training, literally (von Oswald et al., ICLR 2021, Algorithm 1).

    One round takes K minibatches, one per member :math:`k`, all at unchanged base weights :math:`\theta`:

    .. math::
        \phi_k &\leftarrow U_\phi(\phi_k, \nabla_{\phi_k} L_k(\theta, \phi_k)), \qquad k = 1 \dots K \\
        \theta &\leftarrow U_\theta(\theta, \gamma \textstyle\sum_k \nabla_\theta L_k(\theta, \phi_k))

    Every member is a whole deep copy of the model. Before :meth:`start` the model trains as usual, with the
    optimizers given. :meth:`start` builds K + 1 optimizers like each of them: one per member for its late
    weights, one for the base weights, which live in ``model`` and are copied into every member after each
    base step. The optimizers given remain as the clock: a scheduler that acts on them acts on all K + 1, so
    member k steps with the learning rate of its minibatch and the base weights with that of the round's last.

    A minibatch whose gradients are not all finite is skipped, as a gradient scaler would: nothing steps and
    the same member takes the next minibatch. Its forward pass has moved the running statistics, as it does in
    plain training.

    Args:
        model: The model; becomes the holder of the base weights.
        optimizers: One or several optimizers that share out the model's parameters.
        late: Dotted names of the late-phase parameters, as ``model.named_parameters()`` spells them.
        members: K, at least 1.
        base_gradient: gamma: ``"sum"`` (1), ``"mean"`` (1/K) or a factor on the members' summed gradients.
        effective: Dotted names of computed tensors (a parametrization's, over late weights) that are averaged
            themselves instead of the late weights behind them; in the average they are plain parameters.
        optimizer_state: ``"copy"`` gives each member the state its late weights had before the start,
            ``"reset"`` an empty one. The base weights keep theirs.

    Attributes:
        model: The base weights; its late weights and running statistics stay as they were at the start.
        members: The K deep copies, an empty list before the start.
        turn: Index of the member that takes the next minibatch.

    Raises:
        ValueError: If a name of ``late`` is not a parameter of the model, or ``members`` is below 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> reference = Reference(model, optimizer, late=["1.weight", "1.bias"], members=2)
        >>> reference.start()
        >>> for x in torch.ones(4, 5, 2):
        ...     _ = reference.step(lambda member: member(x).square().mean())
        >>> reference.turn, len(reference.members)
        (0, 2)
        >>> type(reference.average()).__name__
        'Sequential'
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        late: Iterable[str],
        members: int,
        *,
        base_gradient: str | float = "sum",
        effective: Iterable[str] = (),
        optimizer_state: str = "copy",
    ) -> None:
        self.model = model
        self.effective = tuple(effective)
        self.clocks = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        self.late = frozenset(late)
        if unknown := self.late - {name for name, _ in model.named_parameters()}:
            raise ValueError(f"late names {sorted(unknown)}, which are no parameters of the model")
        if members < 1:
            raise ValueError(f"members is {members}; it must be at least 1")
        self.count = members
        factors = {"sum": 1.0, "mean": 1.0 / members}
        self.gamma = factors[base_gradient] if isinstance(base_gradient, str) else base_gradient
        self.keep_state = {"copy": True, "reset": False}[optimizer_state]
        self.members: list[nn.Module] = []
        self.turn = 0
        self._late_optimizers: list[list[Optimizer | None]] = []  # [member][optimizer given]
        self._base_optimizers: list[Optimizer | None] = []
        self._base_sum: dict[str, Tensor] = {}

    def start(self) -> None:
        """Makes the K copies, without noise, and their optimizers.

        Raises:
            RuntimeError: If the members exist already.
        """
        if self.members:
            raise RuntimeError("the members exist already: start() comes once")
        for parameter in self.model.parameters():
            parameter.grad = None
        self.members = [copy.deepcopy(self.model) for _ in range(self.count)]
        base = {name for name, _ in self.model.named_parameters()} - self.late
        self._base_optimizers = [self._optimizer(clock, self.model, base, True) for clock in self.clocks]
        self._late_optimizers = [
            [self._optimizer(clock, member, self.late, self.keep_state) for clock in self.clocks]
            for member in self.members
        ]

    def step(
        self,
        *losses: Callable[[nn.Module], Tensor],
        clip: Callable[[list[nn.Parameter]], object] | None = None,
    ) -> bool:
        """Trains on one minibatch: the whole model before the start, the next member after it.

        Args:
            *losses: Functions from a model to the scalar loss of the minibatch; the gradients of several add
                up, as in gradient accumulation.
            clip: Called with the model's parameters when their gradients are there, to change them in place.

        Returns:
            Whether the minibatch counted: False if a gradient was not finite, and nothing stepped.
        """
        model = self.members[self.turn] if self.members else self.model
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = None
        for loss in losses:
            loss(model).backward()
        if not all(p.grad.to_dense().isfinite().all() for p in parameters if p.grad is not None):
            return False
        if clip is not None:
            clip(parameters)
        if self.members:
            self._late_step(model)
        for clock in self.clocks:  # after the start no parameter of a clock has a gradient: it counts, nothing moves
            clock.step()
        return True

    def _late_step(self, member: nn.Module) -> None:
        """The body of Algorithm 1's loop, and its last line after the K-th member."""
        for name, parameter in member.named_parameters():
            if name not in self.late and parameter.grad is not None:
                self._base_sum[name] = self._base_sum.get(name, torch.zeros_like(parameter)) + parameter.grad
        self._step(self._late_optimizers[self.turn])
        self.turn += 1
        if self.turn < self.count:
            return
        base = {name: p for name, p in self.model.named_parameters() if name not in self.late}
        for name, total in self._base_sum.items():
            base[name].grad = self.gamma * total
        self._step(self._base_optimizers)
        for name, parameter in base.items():
            parameter.grad = None
            for copied in self.members:
                copied.get_parameter(name).data.copy_(parameter.data)
        self.turn, self._base_sum = 0, {}

    def _optimizer(
        self, clock: Optimizer, model: nn.Module, names: Iterable[str], keep_state: bool
    ) -> Optimizer | None:
        """An optimizer like ``clock`` for the named parameters of ``model``, None if it holds none."""
        twins = {self.model.get_parameter(name): model.get_parameter(name) for name in names}
        groups = [
            {
                **{key: copy.deepcopy(value) for key, value in group.items() if key != "params"},
                "params": [twins[p] for p in group["params"] if p in twins],
            }
            for group in clock.param_groups
        ]
        if not any(group["params"] for group in groups):
            return None
        optimizer: Optimizer = type(clock)(groups)  # type: ignore[call-arg]  # a group holds every option
        for original, twin in twins.items():
            if keep_state and original in clock.state:
                optimizer.state[twin] = copy.deepcopy(clock.state[original])
        return optimizer

    def _step(self, optimizers: list[Optimizer | None]) -> None:
        """Steps each optimizer with the options that its clock has at this minibatch."""
        for clock, optimizer in zip(self.clocks, optimizers, strict=True):
            if optimizer is None:
                continue
            for ours, theirs in zip(optimizer.param_groups, clock.param_groups, strict=True):
                ours.update({key: theirs[key] for key in SCHEDULED if key in theirs})
            optimizer.step()

    @torch.no_grad()
    def average(self) -> nn.Module:
        r"""The K members averaged into one model, a new deep copy.

        Late weights: the mean in float64, rounded once. Of ``effective`` tensors, the mean of the values that
        they have in the members. A batch normalization whose scale is late: with
        :math:`s_k = \gamma_k / \sqrt{v_k + \epsilon}`, :math:`\mu` and :math:`v` the means of the members'
        running means and variances,

        .. math::
            \gamma = \overline{s} \sqrt{v + \epsilon}, \qquad
            \beta = \overline{\beta_k - s_k \mu_k} + \overline{s} \mu,

        which gives exactly the mean of the K layers' outputs. Where the scale is shared or absent the
        statistics take it up, with :math:`s_k = 1 / \sqrt{v_k + \epsilon}`:
        :math:`v = 1 / \overline{s}^2 - \epsilon`, :math:`\mu = \overline{s_k \mu_k} / \overline{s}`.

        Returns:
            A model of the original class. Before the start: a copy of the model.
        """
        average = copy.deepcopy(self.model)
        if not self.members:
            return average
        for name in self.late:
            average.get_parameter(name).copy_(_mean([m.get_parameter(name) for m in self.members]))
        late = {average.get_parameter(name) for name in self.late}
        for name, layer in average.named_modules():
            if isinstance(layer, _NormBase) and layer.running_mean is not None:
                copies = [member.get_submodule(name) for member in self.members]
                _fold(layer, copies, into_affine=layer.weight in late)
        for name in self.effective:
            owner, _, tensor = name.rpartition(".")
            module, copies = average.get_submodule(owner), [member.get_submodule(owner) for member in self.members]
            values = [getattr(copied, tensor) for copied in copies]
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)
            module.register_parameter(tensor, nn.Parameter(_mean(values).to(values[0].dtype)))
        return average


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().double() for tensor in tensors]).mean(0)


def _fold(layer: _NormBase, copies: Sequence[nn.Module], into_affine: bool) -> None:
    """Writes the one layer whose output is the mean of the copies' outputs in eval mode."""
    states = [{name: tensor.double() for name, tensor in copied.state_dict().items()} for copied in copies]
    plain = {name: _mean(state[name] for state in states) for name in states[0]}
    if into_affine:
        s = [state["weight"] / (state["running_var"] + layer.eps).sqrt() for state in states]
        shift = _mean(state["bias"] - s_k * state["running_mean"] for state, s_k in zip(states, s, strict=True))
        plain["weight"] = _mean(s) * (plain["running_var"] + layer.eps).sqrt()
        plain["bias"] = shift + _mean(s) * plain["running_mean"]
    else:
        s = [1 / (state["running_var"] + layer.eps).sqrt() for state in states]
        weighted = _mean(s_k * state["running_mean"] for state, s_k in zip(states, s, strict=True))
        plain["running_mean"] = weighted / _mean(s)
        plain["running_var"] = 1 / _mean(s).square() - layer.eps
    plain["num_batches_tracked"] = plain["num_batches_tracked"].round()
    layer.load_state_dict(plain)  # copies in place, and rounds here once to the layer's own dtype

"""BatchEnsemble (Wen, Tran and Ba, ICLR 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn

from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods.method import Method, Predictions
from latephase.stage import evaluating

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class BatchEnsemble4(Method):
    r"""K members with weights \(W \circ r_k s_k^T\) from the first minibatch on, their probabilities averaged.

    A minibatch is dealt out to the members in turn, so each sees 1/K of the images. As in the authors' code for wide
    ResNets the factors are drawn from N(1, 1/4) and do not decay; each member has a bias of its own in the head, and
    BatchNorm is shared. The factors are applied to the layers' inputs and outputs, sample by sample.
    """

    name = "batch-ensemble-4"
    label = "BatchEnsemble, 4"
    summary = "4 members with rank-1 factors from the start, their probabilities averaged"
    ensemble = True
    count: ClassVar[int] = 4

    _member_of: Tensor

    @property
    def start(self) -> float:
        """The first minibatch."""
        return 0.0

    def attach(self, trajectory: Trajectory) -> None:
        """Give every convolution and Linear layer its factors."""
        if trajectory.task.kind != "images":
            raise ExperimentError(f"method {self.name} deals out images; it cannot train on {trajectory.task.kind}")
        generator = Generator().manual_seed(trajectory.seed)
        factors = []
        for layer in [m for m in trajectory.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
            weight = layer.weight
            inputs = weight.shape[1] * getattr(layer, "groups", 1)
            for name, size in (("factor_in", inputs), ("factor_out", weight.shape[0])):
                values = 1 + 0.5 * torch.randn(self.count, size, generator=generator)
                factors.append(nn.Parameter(values.to(weight)))
                layer.register_parameter(name, factors[-1])
            if layer.bias is not None:
                factors.append(nn.Parameter(torch.zeros(self.count, len(layer.bias)).to(weight)))
                layer.register_parameter("member_bias", factors[-1])
            layer.register_forward_pre_hook(self._scale_input)
            layer.register_forward_hook(self._scale_output)
        settings = {key: value for key, value in trajectory.optimizer.param_groups[0].items() if key != "params"}
        trajectory.optimizer.add_param_group({**settings, "params": factors, "weight_decay": 0.0})

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Deal the minibatch out; who begins changes from one minibatch to the next."""
        self._member_of = (trajectory.step * len(x) + torch.arange(len(x), device=x.device)) % self.count
        return super().step(trajectory, x, y)

    def members(self, trajectory: Trajectory) -> Predictions:
        """The members' predictions, one pass each."""

        def predict(x: Tensor) -> Tensor:
            outputs = []
            with torch.no_grad(), evaluating(trajectory.model):
                for k in range(self.count):
                    self._member_of = torch.full((len(x),), k, device=x.device)
                    outputs.append(trajectory.model(x))
            return torch.stack(outputs)

        return predict

    def _scale_input(self, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * self._of_samples(layer.get_parameter("factor_in"), args[0]), *args[1:])

    def _scale_output(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        factor = self._of_samples(layer.get_parameter("factor_out"), output)
        if not hasattr(layer, "member_bias"):
            return output * factor
        # The factors belong to the weight: the bias is taken off and put back.
        bias = layer.get_parameter("bias").view(-1, *[1] * (output.ndim - 2)).to(output.dtype)
        return (output - bias) * factor + bias + self._of_samples(layer.get_parameter("member_bias"), output)

    def _of_samples(self, factor: Tensor, like: Tensor) -> Tensor:
        """Each sample's factor, to be multiplied with its channels."""
        own = factor[self._member_of].to(like.dtype)
        return own.view(*own.shape, *[1] * (like.ndim - 2))


class BatchEnsemble10(BatchEnsemble4):
    """The same with as many members as late-phase weights have in the paper."""

    name = "batch-ensemble-10"
    label = "BatchEnsemble, 10"
    summary = "10 members with rank-1 factors from the start, their probabilities averaged"
    count = 10

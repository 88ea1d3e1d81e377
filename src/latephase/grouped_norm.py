"""BatchNorm of all members at once, in the layout in which their convolutions run.

`torch.vmap` would lay a BatchNorm's input (K, B, C, ...) out anew as (B, K C, ...), and its output back, and autograd
would keep both beside the convolution's: twice the memory of plain training on K B samples.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Saved = tuple[Tensor, Tensor, Tensor]
"""Outputs (K, B, C, ...); mean and inverse standard deviation, (K, C)."""


class _Layer(NamedTuple):
    """Scales, shifts and running statistics of all members, (K, C) or None; momentum and epsilon."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    rate: float
    eps: float


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    r"""Every member's inputs by the mean and variance of its own minibatch: the definition.

    .. math:: y_{kbc} = \frac{x_{kbc} - \mu_{kc}}{\sqrt{\sigma^2_{kc} + \epsilon}} \, \gamma_{kc} + \beta_{kc}

    Args:
        x: inputs (K, B, C, ...).
        weight: scales (K, C), or None.
        bias: shifts (K, C), or None.
        eps: added to the variance.

    Returns:
        Outputs (K, B, C, ...).
    """
    var, mean = torch.var_mean(x, dim=_samples(x), correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(var + eps)
    y = y if weight is None else y * _beside(weight, x)
    return y if bias is None else y + _beside(bias, x)


def _samples(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis not in (0, 2)]


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """(K, C) as it goes with (K, B, C, ...)."""
    return values.reshape(values.shape[0], 1, values.shape[1], *(1 for _ in range(x.ndim - 3)))


def _rows(values: Tensor | None, members: int) -> Iterable[Tensor | None]:
    return (None for _ in range(members)) if values is None else values.unbind()


class _OneByOne:
    """Torch's kernel, once for each member's part of the memory: on a CPU, where a call costs little."""

    @staticmethod
    def forward(x: Tensor, layer: _Layer) -> Saved:
        weight, bias, mean, var, rate, eps = layer
        size, members = (len(x), x.shape[2]), len(x)
        precise = x if weight is None else weight
        y, means, deviations = torch.empty_like(x), precise.new_empty(size), precise.new_empty(size)
        parts = (x, *(_rows(each, members) for each in (weight, bias, mean, var)), y, means, deviations)
        for one, scale, shift, its_mean, its_var, *out in zip(*parts, strict=True):
            torch.native_batch_norm(one, scale, shift, its_mean, its_var, True, rate, eps, out=tuple(out))
        return y, means, deviations

    @staticmethod
    def backward(
        gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor, eps: float, wanted: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        dx = torch.empty_like(x) if wanted[0] else None
        scales, shifts = [], []
        parts = zip(gradient, x, _rows(weight, len(x)), mean, deviation, strict=True)
        for member, (its, one, scale, m, d) in enumerate(parts):
            found = torch.ops.aten.native_batch_norm_backward(its, one, scale, None, None, m, d, True, eps, wanted)
            if dx is not None:
                dx[member].copy_(found[0])
            scales.append(found[1])
            shifts.append(found[2])
        return dx, torch.stack(scales) if wanted[1] else None, torch.stack(shifts) if wanted[2] else None


class _Together:
    """A few kernels over all members: on an accelerator, where every launch costs."""

    @staticmethod
    def forward(x: Tensor, layer: _Layer) -> Saved:
        weight, bias, mean, var, rate, eps = layer
        precise = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, means = torch.var_mean(precise, dim=_samples(x), correction=0)
        if mean is not None and var is not None:
            count = x.numel() // means.numel()
            mean.lerp_(means.to(mean.dtype), rate)
            var.lerp_((variance * (count / (count - 1))).to(var.dtype), rate)
        deviation = torch.rsqrt(variance + eps)
        scale = deviation if weight is None else deviation * weight
        shift = -means * scale if bias is None else torch.addcmul(bias, means, scale, value=-1)
        return torch.addcmul(_beside(shift, x), precise, _beside(scale, x)).to(x.dtype), means, deviation

    @staticmethod
    def backward(
        gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor, eps: float, wanted: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # With n values a channel and h the normalised input: d_bias = sum g, d_weight = sum g h, and
        # d_x = weight / deviation * (g - d_bias / n - h d_weight / n).
        centred = x - _beside(mean, x)
        precise = gradient.to(centred.dtype)
        shifts = precise.sum(_samples(x))
        scales = (centred * precise).sum(_samples(x)) * deviation
        dx = None
        if wanted[0]:
            count = x.numel() // mean.numel()
            slope = deviation if weight is None else deviation * weight
            dx = centred.mul_(_beside(-slope * deviation * scales / count, x))
            dx.addcmul_(precise, _beside(slope, x)).sub_(_beside(slope * shifts / count, x))
            dx = dx.to(x.dtype)
        return dx, scales if wanted[1] else None, shifts if wanted[2] else None


def _way(x: Tensor) -> type[_OneByOne] | type[_Together]:
    # Torch's kernel writes wrong values where a member's part of the memory has gaps, as after grouped convolutions.
    whole = x[0].is_contiguous() or (x.ndim == 5 and x[0].is_contiguous(memory_format=torch.channels_last))
    return _OneByOne if x.device.type == "cpu" and whole else _Together


class _Grouped(torch.autograd.Function):
    """Training-mode BatchNorm of (K, B, C, ...) with scales, shifts and running statistics (K, C)."""

    @staticmethod
    def forward(x: Tensor, *layer: Any) -> Saved:
        return _way(x).forward(x, _Layer(*layer))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Saved) -> None:
        x, weight, bias, *_, ctx.eps = inputs
        ctx.way = _way(x)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        nothing = (None,) * 4
        if gradient is None:
            return None, None, None, *nothing
        wanted = [
            needed and each is not None for needed, each in zip(ctx.needs_input_grad, (x, weight, bias), strict=False)
        ]
        if torch.is_grad_enabled():  # somebody wants a gradient of this gradient
            of = [each for each, needed in zip((x, weight, bias), wanted, strict=True) if needed]
            found = iter(torch.autograd.grad(normalise(x, weight, bias, ctx.eps), of, gradient, create_graph=True))
            return *(next(found) if needed else None for needed in wanted), *nothing
        return *ctx.way.backward(gradient, x, weight, mean, deviation, ctx.eps, wanted), *nothing


class _Member(torch.autograd.Function):
    """What one member's BatchNorm becomes under `torch.vmap`: all of them at once."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        raise NotImplementedError("only under torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        raise NotImplementedError("only under torch.vmap")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        every = [
            # Expanded is enough: what all members share is read, never written.
            arg.movedim(dim, 0)
            if dim is not None
            else arg.expand(info.batch_size, *arg.shape)
            if isinstance(arg, Tensor)
            else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        return _Grouped.apply(*every)[0], 0


class GroupedNorm(TorchFunctionMode):
    """Context in which a training-mode BatchNorm under `torch.vmap` is that of all members at once."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Every call of torch; all but BatchNorm's go on as they are."""
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or input.ndim < 2 or input.numel() == input.shape[1]:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y: Tensor = _Member.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return y

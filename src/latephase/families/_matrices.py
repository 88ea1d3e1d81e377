"""Which weight matrices a model has, by kind of module, and which of them a family is asked to take."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import LatePhaseValueError
from ._family import first_names, listing, refuse_parametrized, refuse_unusable

KINDS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.LSTM,
    nn.GRU,
    nn.RNN,
    nn.MultiheadAttention,
    nn.Embedding,
)
"""Modules whose weights have an output and an input dimension, in this order, and perhaps a kernel behind them."""

_PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def check_kinds(family: str, types: Sequence[object]) -> None:
    """Refuse types of modules that have no such weights.

    Raises:
        LatePhaseValueError: it names the type, and those that are supported.
    """
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, KINDS)):
            shown = kind.__name__ if isinstance(kind, type) else repr(kind)
            raise LatePhaseValueError(f"{family}({shown}): supported are {listing(t.__name__ for t in KINDS)}")


def _has_matrices(module: nn.Module) -> bool:
    # The linear layer of Hugging Face's GPT-2 and its kin, known by its name: it stores its weight as (in, out).
    linear = type(module).__name__ == "Conv1D" and getattr(module._parameters.get("weight"), "ndim", 0) == 2
    return linear or isinstance(module, KINDS)


def _matrices(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The weights of one module: dotted name of their owner, the owner, their own name."""
    if isinstance(module, nn.RNNBase):
        yield from ((name, module, tensor) for tensor in module._flat_weights_names if tensor.startswith("weight"))
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((name, module, tensor) for tensor in _PACKED if getattr(module, tensor, None) is not None)
        yield f"{name}.out_proj" if name else "out_proj", module.out_proj, "weight"
    else:
        yield name, module, "weight"


def matrices(
    model: nn.Module, family: str, types: tuple[type[nn.Module], ...] = (), names: list[str] | None = None
) -> dict[str, nn.Parameter]:
    """Choose weight matrices by type and name of their modules.

    Args:
        model: the user's model.
        family: for error messages, what was asked for: "RankOne(names=...)".
        types: kinds of modules; none given means all, with Hugging Face's Conv1D, but embeddings only by name.
        names: `fnmatch` patterns over dotted names of modules; None takes all of the types.

    Returns:
        The weights by dotted name, in the model's order; a tied one once, under its first name.

    Raises:
        LatePhaseValueError: nothing matches, or a weight cannot be trained beside factors.
    """
    modules = {n: m for n, m in model.named_modules() if (isinstance(m, types) if types else _has_matrices(m))}
    chosen = {n: m for n, m in modules.items() if names is None or any(fnmatchcase(n, pattern) for pattern in names)}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    tables = {p for m in embeddings for p in m.parameters(recurse=False)} if not types and names is None else set()
    first = first_names(model)
    found = []
    for name, module in chosen.items():
        for path, owner, tensor in _matrices(name, module):
            refuse_parametrized(path, owner)
            weight = owner._parameters.get(tensor)
            if weight is None:
                raise LatePhaseValueError(
                    f"{f'{path}.{tensor}'.lstrip('.')!r} of {type(owner).__name__} is no parameter: it is quantised, "
                    "or computed by a hook; attach before that is done, or choose other weights"
                )
            if weight not in tables:
                found.append(weight)
    if not found:
        kinds = "/".join(t.__name__ for t in types or KINDS)
        hint = " (embeddings, and what is tied to one, take part by name only)" if tables else ""
        raise LatePhaseValueError(f"{family} matches nothing; the {kinds} modules are {listing(modules)}{hint}")
    wanted = set(found)
    for name, module in model.named_modules():
        for tensor, parameter in module._parameters.items():
            if parameter in wanted:
                refuse_parametrized(name, module)
                refuse_unusable(f"{name}.{tensor}" if name else tensor, parameter)
                if isinstance(module, nn.Embedding):
                    _refuse_embedding(first[parameter], module)
    return {name: parameter for parameter, name in first.items() if parameter in wanted}


def _refuse_embedding(name: str, module: nn.Embedding) -> None:
    """Refuse tables that are not simply read."""
    for option, why in (("sparse", "has gradients for some rows only"), ("max_norm", "is rescaled in place in use")):
        value = getattr(module, option)
        if value:
            raise LatePhaseValueError(
                f"{name!r} is of an nn.Embedding with {option}={value}, whose table {why}; factors need an embedding "
                f"without {option}, or choose other weights"
            )

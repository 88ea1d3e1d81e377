"""Rank-one factors: every member scales the rows and the columns of a shared weight."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ._factors import Factors, install_factors
from ._family import Family, Installation
from ._matrices import check_kinds, matrices


class RankOneFactors(Factors):
    """Row and column factors of one weight of shape (out, in, ...)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(weight.new_ones(weight.shape[0]))
        self.column = nn.Parameter(weight.new_ones(weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        """`weight * (row column^T)`, elementwise over the first two dimensions."""
        kernel = (1,) * (weight.ndim - 2)
        return weight * self.row.view(-1, 1, *kernel) * self.column.view(1, -1, *kernel)

    def neutral(self) -> dict[str, Tensor]:
        """Ones."""
        return {"row": torch.ones_like(self.row), "column": torch.ones_like(self.column)}


class RankOne(Family):
    r"""Members \(W_k = W \circ (r_k s_k^\top)\) of every weight matrix: linear, convolutional, recurrent, attention.

    The factors start at one, so the model's function does not change at attachment; until the members come to life
    they train as ordinary shared weights, then every member has its own. The average is that of the factors, and at
    collapse it is folded into the plain weight. Factors join the optimizer group of their weight: with weight decay
    there they decay towards zero, which `LatePhase.parameter_groups(late_weight_decay=0.0)` avoids.

    Every matrix that the module stores has one pair of factors: in `nn.LSTM`, `nn.GRU` and `nn.RNN` the input matrix
    and the recurrent one of each layer and direction, with all gates in the rows (and the projection, where there is
    one), in `nn.MultiheadAttention` the packed projection of queries, keys and values, and that of the output. The
    weights are composed once a forward pass, not once a time step, and cuDNN or oneDNN run the sequence as they do
    without factors.

    A tied weight (an embedding that is also the output layer) has one pair for all its places and stays tied.

    Args:
        types: which modules: `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, `nn.LSTM`, `nn.GRU`, `nn.RNN`,
            `nn.MultiheadAttention`, `nn.Embedding`. The default is all of them, and Hugging Face's `Conv1D`, but not
            embeddings and what is tied to one: to compose a whole table costs more than the rows that a minibatch
            reads.
        names: `fnmatch` patterns over the dotted names of the modules, embeddings included; None takes every module of
            the types.

    Source: "Neural networks with late-phase weights" (ICLR 2021), rank-1 weights; BatchEnsemble (ICLR 2020).

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> list(latephase.RankOne(torch.nn.Conv2d).targets(model))
        ['0.weight']
        >>> list(latephase.RankOne().targets(torch.nn.LSTM(3, 8)))
        ['weight_ih_l0', 'weight_hh_l0']
    """

    def __init__(self, *types: type[nn.Module], names: str | list[str] | None = None) -> None:
        check_kinds("RankOne", types)
        self.types = types
        self.names = [names] if isinstance(names, str) else names

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """See `Family.targets`."""
        return matrices(model, f"RankOne(names={self.names})", self.types, self.names)

    def install(self, model: nn.Module, targets: Mapping[str, nn.Parameter]) -> Installation:
        """See `Family.install`."""
        factors = {name: RankOneFactors(weight.detach()) for name, weight in targets.items()}
        return install_factors(model, targets, factors)

"""Recurrent modules whose weights are computed: composed once per forward pass, and handed to the same kernels.

`nn.LSTM` and its kin pass a list of their weights, `_flat_weights`, to one kernel for the whole sequence. With weights
that are computed, torch would compose each of them several times a pass, and leave results, with their graph, in the
module.
"""

from typing import Any

import torch
from torch import nn


def hand_over(module: nn.RNNBase) -> None:
    """Make a parametrized recurrent module compose its weights when its forward pass begins, and let go of them after.

    The methods go to the class that `parametrize` has made for this one module. Under `torch.compile` the pass runs
    outside the graph, as that of every recurrent module does.
    """
    made = type(module)
    plain: type[nn.RNNBase] = made.__mro__[1]

    def forward(self: nn.RNNBase, *args: Any, **kwargs: Any) -> Any:
        # cuDNN wants all weights in one buffer, into which `flatten_parameters` moves the tensors it is given. The
        # user's Parameters (biases) must stay where they are.
        weights = [getattr(self, name) for name in self._flat_weights_names]
        self._flat_weights = [w.clone() if isinstance(w, nn.Parameter) and w.is_cuda else w for w in weights]
        self.flatten_parameters()
        try:
            return plain.forward(self, *args, **kwargs)
        finally:
            self._init_flat_weights()

    def empty(self: nn.RNNBase) -> None:
        # Not the weights: results with a graph cannot be copied, and would keep that graph alive.
        self._flat_weights = [None] * len(self._flat_weights_names)
        self._flat_weight_refs = [None] * len(self._flat_weights_names)

    def keep(self: nn.RNNBase) -> None:
        """The list is right for as long as the forward pass lasts."""

    methods = {"forward": torch.compiler.disable(forward), "_init_flat_weights": empty, "_update_flat_weights": keep}
    for name, method in methods.items():
        setattr(made, name, method)
    module._init_flat_weights()


def take_back(module: nn.RNNBase) -> None:
    """Let the module, whose weights are plain Parameters again, find them."""
    module._init_flat_weights()

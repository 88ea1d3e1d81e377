"""Copies of many tensors in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

Groups = list[list[Tensor]]
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Swap:
    """Copies between lists of tensors that are like a given list, in one call for each device and dtype.

    A call with several dtypes copies one tensor at a time. BatchNorm's counts are the usual exception to one dtype, so
    they are copied as pieces of the others' size, all of them as whole numbers: the bits, whatever they mean.

    Args:
        like: the tensors; others come in the same order, with the same shapes, dtypes and devices.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, tensor in enumerate(like):
            kinds.setdefault((tensor.device, tensor.dtype), []).append(index)
        self._bits: dict[int, torch.dtype] = {}
        for (device, dtype), counts in list(kinds.items()):
            others = [(other, group) for (place, other), group in kinds.items() if place == device and other != dtype]
            if dtype != torch.int64 or len(others) != 1 or any(like[index].ndim for index in counts):
                continue
            (other, group), plain = others[0], all(type(like[i]) is Tensor for i in (*counts, *others[0][1]))
            if plain and other.is_floating_point and other.itemsize in _BITS:
                group.extend(counts)
                del kinds[device, dtype]
                self._bits.update(dict.fromkeys(group, _BITS[other.itemsize]))
        self._order = list(kinds.values())

    def split(self, tensors: Sequence[Tensor]) -> Groups:
        """A list of tensors as `copy` takes it; views of the same memory."""
        return [[self._piece(index, tensors[index]) for index in group] for group in self._order]

    def rows(self, stacks: Sequence[Tensor], count: int) -> list[Groups]:
        """Every row of stacks (K, ...) as `copy` takes it; views of the same memory."""
        groups = [[stack.unbind() for stack in group] for group in self.split(stacks)]
        return [[[rows[k] for rows in group] for group in groups] for k in range(count)]

    def _piece(self, index: int, tensor: Tensor) -> Tensor:
        bits = self._bits.get(index)
        if bits is None:
            return tensor
        return (tensor if tensor.itemsize == bits.itemsize else tensor.unsqueeze(-1)).view(bits)

    @staticmethod
    def equal(one: Groups, other: Groups) -> bool:
        """Whether both hold the same values, in one comparison for each group."""
        pairs = zip(one, other, strict=True)
        return all(torch.equal(*(torch.cat([t.flatten() for t in group]) for group in pair)) for pair in pairs)

    @staticmethod
    def copy(into: Groups, source: Groups) -> None:
        """Overwrite the first with the second."""
        for a, b in zip(into, source, strict=True):
            torch._foreach_copy_(a, b)

"""Making the next thing while the present one is in use: on a stream of its own, where a device has streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")


class Ahead(Generic[Key]):
    """Makes tensors by their key; on CUDA the ones that are wanted next already run beside the present work.

    A CPU has no streams: there everything is made when it is asked for.

    Args:
        device: Where the tensors are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._coming: tuple[Key, tuple[Tensor, ...]] | None = None

    def take(self, make: Callable[[Key], tuple[Tensor, ...]], key: Key, following: Key) -> tuple[Tensor, ...]:
        """The tensors of a key.

        Args:
            make: Makes them, of what the current stream had put on the device at the first call.
            key: What is wanted now.
            following: What will most likely be wanted next; it is begun where there are streams.

        Returns:
            What `make` returns, ready for the current stream.
        """
        if self._device.type != "cuda":
            return make(key)
        current = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
            self._stream.wait_stream(current)
        if self._coming is None or self._coming[0] != key:
            self._begin(make, key)
        assert self._coming is not None
        tensors = self._coming[1]
        current.wait_stream(self._stream)
        for tensor in tensors:
            # Their memory is the other stream's, which may not reuse it while this one works with them.
            tensor.record_stream(current)
        self._begin(make, following)
        return tensors

    def _begin(self, make: Callable[[Key], tuple[Tensor, ...]], key: Key) -> None:
        with torch.cuda.stream(self._stream):
            self._coming = (key, make(key))

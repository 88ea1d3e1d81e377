"""What a minibatch of resident images costs: shift, mirror, cutout and normalisation of 32x32 pixels.

Whole crops that are mirrored afterwards, against one gather that mirrors on the way: both give the same bits. Passes
over a block of minibatches are counted, time is a paired ratio. Prints a table; --json writes it.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from environment import save
from latephase.experiments.config import Data
from latephase.experiments.data import Batches, Images
from latephase.experiments.data.augmentation import gathered_crops, whole_crops
from paired import compare
from throughput import synchronizer


class _Passes(TorchDispatchMode):
    """Counts operators that write as many values as a block of minibatches has."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            storages = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            viewed = out.untyped_storage().data_ptr() in storages and not func._schema.is_mutable
            self.count += not viewed
        return out


def passes(work: Callable[[], tuple[torch.Tensor, ...]]) -> int:
    """Operators that go over all images of a block."""
    with _Passes(work()[0].numel()) as counted:
        work()
    return counted.count


def measure(batch: int, channels_last: bool, options: argparse.Namespace) -> dict[str, object]:
    """Both ways at one size of the minibatches."""
    data = Data(crop_padding=4, padding="reflect", flip=True, cutout=8)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8192, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(8192) % 10, tuple("0123456789"), "noise")
    device, synchronize = torch.device(options.device), synchronizer(options.device)
    made = []
    for crop in (whole_crops, gathered_crops):
        batches = Batches(images, batch, 0, data, device, channels_last=channels_last)
        batches._crop = crop
        layout = torch.channels_last if crop is gathered_crops else torch.contiguous_format
        batches._pixels = batches._pixels.contiguous(memory_format=layout)
        batches.at(0)
        made.append(batches)
    whole_block, gathered_block = (partial(batches._block_of, (0, 0)) for batches in made)
    assert torch.equal(whole_block()[0], gathered_block()[0])
    ratio = compare(gathered_block, whole_block, options.pairs, synchronize=synchronize)
    synchronize()
    begun = time.perf_counter()
    for _ in range(options.pairs):
        whole_block()
    synchronize()
    images_made = options.pairs * len(whole_block()[1])
    return {
        "gather / whole crops, time": dataclasses.asdict(ratio),
        "whole crops, microseconds an image": 1e6 * (time.perf_counter() - begun) / images_made,
        "passes over the images of a block": {
            "whole crops": passes(whole_block),
            "one gather": passes(gathered_block),
        },
        "minibatches in a block": made[0]._block,
        "chosen here": "whole crops" if device.type == "cpu" else "one gather",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 128, 1024])
    parser.add_argument("--json", help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {}
    for batch in options.batches:
        for channels_last in (False, True):
            name = f"B={batch}, {'channels-last' if channels_last else 'contiguous'}"
            rows[name] = measure(batch, channels_last, options)
            print(f"{name}: {rows[name]}", flush=True)
    if options.json:
        save(options.json, options, rows)


if __name__ == "__main__":
    main()

"""What the training loop costs around the model: minibatches, schedule, metrics, hooks.

The reference is the model alone: forward, backward and optimizer step on minibatches that were made before. Both train
in one process, in turn, one epoch's worth of minibatches at a time; evaluation and checkpoints are left out. Prints a
table; --json writes it with device, versions and commit.
"""

import argparse
import dataclasses
from itertools import count, islice

import torch
import torch.nn.functional as F

from environment import save
from latephase.experiments.config import Compute, Data, Model, Recipe, Training
from latephase.experiments.data import Images, Split
from latephase.experiments.device import pick_device, prepare_process
from latephase.experiments.methods import METHODS
from latephase.experiments.trajectory import Trajectory
from paired import Ratio, compare

# The digits recipes' network, the smallest there is, and the paper's family at sizes for two cores.
SETTINGS = {
    "small-cnn, 8x8 pixels, B=16": (Model("small-cnn", width=8, depth=2), 8, 1, 16),
    "wrn-10-1, 32x32 pixels, B=16": (Model("wrn-10-1"), 32, 3, 16),
    "wrn-16-2, 32x32 pixels, B=32": (Model("wrn-16-2"), 32, 3, 32),
    "wrn-16-4, 32x32 pixels, B=128": (Model("wrn-16-4"), 32, 3, 128),
}


def measure(name: str, options: argparse.Namespace) -> Ratio:
    """Time of the model alone divided by time of the loop."""
    model, size, channels, batch = SETTINGS[name]
    recipe = Recipe(
        data=Data(crop_padding=4, flip=True),
        model=model,
        training=Training(epochs=10_000, batch_size=batch),
        compute=Compute(device=options.device, channels_last=size > 8, threads=options.threads, onednn=size > 8),
        evaluate_every=20_000,
    )
    prepare_process(recipe.compute)
    steps = max(options.steps, 1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (steps * batch, channels, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (len(pixels),), generator=generator)
    images = Images(pixels, labels, tuple("0123456789"), "noise")
    looped = Trajectory(recipe, Split(images, None, images), 0, METHODS["base"](recipe))
    alone = Trajectory(recipe, Split(images, None, images), 0, METHODS["base"](recipe))
    ready = list(islice((alone.batches.at(i) for i in count()), steps))

    def train_alone() -> None:
        for x, y in ready:
            alone.optimizer.zero_grad()
            F.cross_entropy(alone.model(x), y).backward()
            alone.optimizer.step()

    def train_in_the_loop() -> None:
        looped.run(looped.step + steps, on_epoch=lambda record: None, on_step=lambda step: None)

    cuda = looped.device.type == "cuda"
    return compare(
        train_alone, train_in_the_loop, options.pairs, synchronize=torch.cuda.synchronize if cuda else lambda: None
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40, help="minibatches of one time")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--only", help="part of a setting's name")
    parser.add_argument("--json", help="write the table to this file")
    options = parser.parse_args()
    options.device = str(pick_device(options.device))
    rows = {}
    for name in SETTINGS:
        if options.only is None or options.only in name:
            ratio = measure(name, options)
            rows[name] = dataclasses.asdict(ratio)
            cost, low, high = (100 * (1 / r - 1) for r in (ratio.median, ratio.high, ratio.low))
            print(f"{name}: the loop costs {cost:.1f}% of the model alone [{low:.1f}, {high:.1f}]", flush=True)
    if options.json:
        save(options.json, options, rows, "model alone / loop, time")


if __name__ == "__main__":
    main()

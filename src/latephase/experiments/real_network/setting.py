"""What is trained and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from latephase.experiments.errors import ExperimentError

#: Stretches between two readings of the loss.
POINTS = 20
_AT_LEAST = {
    "images": 10,
    "width": 1,
    "depth": 1,
    "batch_size": 1,
    "members": 2,
    "warm_up": 0,
    "settling": 0,
    "descent": 0,
    "replicas": 2,
    "seed": 0,
}


@dataclass(frozen=True)
class Setting:
    """The network, its data and the runs that are compared.

    Attributes:
        images: Digits to train on, class-balanced.
        label_noise: Fraction of their labels that are replaced by random ones.
        width: Channels of the SmallCNN.
        depth: Its convolutions.
        weight_decay: Half the factor of the squared weights in the loss; it gives every direction a minimum.
        batch_size: Images in a minibatch, drawn with replacement.
        lr: Learning rate of SGD before and after the start.
        members: K.
        warm_up: Minibatches with momentum, at first with the batch's statistics, before the constant rate.
        settling: Minibatches of plain SGD at the constant rate before the start.
        descent: Steps of gradient descent on all images from the start to the point of expansion.
        minibatches: Minibatches after the start, a multiple of 20 K.
        replicas: Independent runs of every method.
        seed: Seed of everything.
    """

    images: int = 400
    label_noise: float = 0.2
    width: int = 4
    depth: int = 2
    weight_decay: float = 0.01
    batch_size: int = 16
    lr: float = 0.02
    members: int = 5
    warm_up: int = 6000
    settling: int = 4000
    descent: int = 300
    minibatches: int = 1500
    replicas: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise ExperimentError(
                    f"--{name} {getattr(self, name)} is not valid; it takes a whole number >= {least}"
                )
        for name in ("lr", "weight_decay"):
            if not getattr(self, name) > 0.0:
                raise ExperimentError(f"--{name} {getattr(self, name)} is not valid; it takes a number > 0")
        if not 0.0 <= self.label_noise <= 1.0:
            raise ExperimentError(f"--label_noise {self.label_noise} is not valid; it takes a number from 0 to 1")
        points = POINTS * self.members
        if self.minibatches < points or self.minibatches % points:
            raise ExperimentError(
                f"--minibatches {self.minibatches} is not valid; it takes a multiple of {POINTS} rounds of"
                f" {self.members} members, such as {max(1, round(self.minibatches / points)) * points}"
            )

    @property
    def counts(self) -> list[int]:
        """Minibatches at which the loss is read: equally spaced, each a whole number of rounds."""
        return list(range(0, self.minibatches + 1, self.minibatches // POINTS))

"""What readings that average weights share: a plain model with BatchNorm statistics of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

import latephase
from latephase.experiments.methods.method import Reading

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class AveragedWeights(Reading):
    """A mean of weights along the trajectory; under late-phase weights of the averaged model's, hence of all members'.

    The running statistics of BatchNorm belong to the weights they were gathered with, so they are computed anew, on
    augmented minibatches.
    """

    def weights(self) -> dict[str, Tensor]:
        """The plain state dict of the mean."""
        raise NotImplementedError

    def model(self, trajectory: Trajectory) -> nn.Module:
        """A plain model with the mean weights, and statistics of one augmented pass over the training images."""
        model = trajectory.fresh_model()
        model.load_state_dict(self.weights())
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            with trajectory.autocast():
                # The pass after the last one of training: another shuffle, the same augmentation.
                images = (x for x, _ in trajectory.batches.epoch(trajectory.recipe.training.epochs))
                latephase.recompute_statistics(model, images)
        return model

"""The network where late-phase training begins: SGD at a constant rate has come to rest, but for its noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latephase.experiments.config import Data
from latephase.experiments.data import Images, load_images
from latephase.experiments.data.split import split_images
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models.small_cnn import SmallCNN
from latephase.experiments.real_network.measure import draw
from latephase.experiments.real_network.objective import Objective, flat_weights, of_model
from latephase.experiments.real_network.setting import Setting

_MOMENTUM = 0.9


def network(setting: Setting) -> tuple[nn.Module, Objective]:
    """A network with warm running statistics, and its training loss with these held constant.

    The first half of the warm-up is in training mode, where BatchNorm uses the batch's statistics; from then on the
    model is in eval mode, so that what is predicted and what is measured are one function of the weights.

    Args:
        setting: Data, network and warm-up.

    Returns:
        The model in eval mode and the loss of its flat weights.

    Raises:
        ExperimentError: If there are not so many images.
    """
    inputs, targets = _digits(setting)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        model = SmallCNN(10, 1, 8, setting.width, setting.depth).double()
    optimizer = torch.optim.SGD(model.parameters(), setting.lr, momentum=_MOMENTUM, weight_decay=setting.weight_decay)
    index = draw(len(inputs), 1, setting.warm_up, setting.batch_size, setting.seed)[:, 0]
    for i, chosen in enumerate(index):
        model.train(2 * i < setting.warm_up)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    return model, of_model(model, inputs, targets, setting.weight_decay)


def settle(objective: Objective, model: nn.Module, setting: Setting) -> tuple[Tensor, Tensor, list[float]]:
    """Train at the constant rate to the start, and descend from there to the point of expansion.

    The descent is on all images at SGD's rate: it removes the error along the steep directions, which is SGD's noise,
    and leaves the flat ones, along which the start is as good a place as any.

    Args:
        objective: The loss.
        model: Gives the first weights.
        setting: Rates and lengths.

    Returns:
        The start and the point of expansion, (n,) each, and the loss at the quarters of the way to the start.

    Raises:
        ExperimentError: If training diverged.
    """
    weights = flat_weights(model)
    index = draw(objective.samples, 1, setting.settling, setting.batch_size, setting.seed + 1)
    losses = [float(objective.losses(weights[None])[0])]
    for part in index.tensor_split(4):
        for chosen in part:
            weights = weights - setting.lr * objective.minibatch_gradients(weights[None], chosen)[0]
        losses.append(float(objective.losses(weights[None])[0]))
    if not bool(torch.isfinite(weights).all()):
        raise ExperimentError(f"training diverged; choose a smaller --lr than {setting.lr:g}")
    centre = weights
    for _ in range(setting.descent):
        centre = centre - setting.lr * objective.gradient(centre)
    return weights, centre, losses


def _digits(setting: Setting) -> tuple[Tensor, Tensor]:
    data = Data(name="digits", subset=setting.images, label_noise=setting.label_noise)
    images, test = load_images(data)
    train = split_images(images, test, data, setting.seed).train
    assert isinstance(train, Images)
    mean, std = train.normalisation()
    pixels = train.pixels.double() / 255
    return (pixels - mean.double()[:, None, None]) / std.double()[:, None, None], train.labels

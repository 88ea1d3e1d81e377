"""The paper's learning rates epoch by epoch, and the models."""

import pytest
import torch
from torch import nn

from latephase.experiments.config import Model, Training
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import SmallCNN, WideResNet, build_model
from latephase.experiments.schedule import learning_rate, steps_at


@pytest.mark.parametrize(
    ("constant", "linear", "final", "begin", "end", "last"),
    [(0.5, 0.9, 0.01, 100, 180, 0.001), (0.4, 0.72, 0.5, 80, 144, 0.05)],
)
def test_the_papers_two_schedules(
    constant: float, linear: float, final: float, begin: int, end: int, last: float
) -> None:
    training = Training(lr=0.1, constant_until=constant, linear_until=linear, final_lr=final)
    for epoch in range(200):
        if epoch < begin:
            expected = 0.1
        elif epoch < end:
            expected = 0.1 + (last - 0.1) * (epoch - begin) / (end - begin)
        else:
            expected = last
        assert learning_rate(training, epoch / 200) == pytest.approx(expected, rel=1e-12)


def test_a_schedule_without_a_decay_stays_constant_and_one_without_a_slope_drops() -> None:
    assert learning_rate(Training(lr=0.3, constant_until=1.0, linear_until=1.0), 0.999) == 0.3
    drop = Training(lr=0.3, constant_until=0.5, linear_until=0.5, final_lr=0.1)
    assert learning_rate(drop, 0.49) == 0.3
    assert learning_rate(drop, 0.5) == pytest.approx(0.03)


def test_a_fraction_is_a_whole_number_of_minibatches() -> None:
    assert [steps_at(f, 200) for f in (0, 0.6, 1)] == [0, 120, 200]
    assert steps_at(0.333, 10) == 3


def test_the_wide_resnets_have_their_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            (28, 10): sum(p.numel() for p in WideResNet(28, 10, 10).parameters()),
            (16, 4): sum(p.numel() for p in WideResNet(16, 4, 10).parameters()),
        }
        convolutions = [m for m in WideResNet(28, 10, 10).modules() if isinstance(m, nn.Conv2d)]
    # 36.5M and 2.7M in Zagoruyko and Komodakis (2016), table 4 and 5.
    assert sizes == {(28, 10): 36_479_194, (16, 4): 2_748_890}
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) == 25


def test_a_wide_resnet_starts_every_block_with_activation_and_ends_with_one() -> None:
    model = WideResNet(10, 1, 5).eval()
    seen: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, _i, _o, name=name: seen.append(name))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    first = [name for name in seen if name.startswith("groups.0.0")]
    assert first == [
        "groups.0.0.norm1",
        "groups.0.0.relu",
        "groups.0.0.conv1",
        "groups.0.0.norm2",
        "groups.0.0.relu",
        "groups.0.0.dropout",
        "groups.0.0.conv2",
    ]
    assert seen[-3:] == ["norm", "relu", "classifier"]


@pytest.mark.parametrize(("size", "channels", "depth"), [(8, 1, 2), (8, 1, 3), (32, 3, 4), (28, 1, 2), (6, 3, 1)])
def test_the_small_cnn_takes_images_of_any_size(size: int, channels: int, depth: int) -> None:
    model = SmallCNN(7, channels, size, width=5, depth=depth)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth


def test_weights_depend_on_the_seed_alone_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (build_model(Model(), classes=10, channels=1, size=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_torchvisions_models_are_built_by_name() -> None:
    model = build_model(Model(name="torchvision:resnet18"), classes=3, channels=3, size=64, seed=0)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal-cnn", "did you mean small-cnn"),
        ("torchvision:resnet19", "did you mean torchvision:resnet1"),
        ("wrn-11-2", "a wide ResNet has a depth of 10, 16, 22, 28, ...; not 11"),
    ],
)
def test_an_unknown_model_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        build_model(Model(name=name), classes=10, channels=3, size=32, seed=0)

"""The paper's learning rates epoch by epoch, and the models."""

from pathlib import Path

import pytest
import torch
from torch import nn

from latephase.experiments.config import Model, Training
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import PyramidNet, SmallCNN, WideResNet, build_model
from latephase.experiments.outcome import save_model
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
        ("pyramidnet-100-84", "a PyramidNet has a depth of 8, 14, 20, ..., 110, ...; not 100"),
    ],
)
def test_an_unknown_model_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        build_model(Model(name=name), classes=10, channels=3, size=32, seed=0)


def test_steps_of_the_learning_rate() -> None:
    steps = Training(lr=0.1, constant_until=1.0, linear_until=1.0, lr_drops=[0.5, 0.75], drop_factor=0.1)
    rates = [learning_rate(steps, f) for f in (0.0, 0.499, 0.5, 0.74, 0.75, 0.999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    both = Training(lr=0.1, constant_until=0.0, linear_until=1.0, final_lr=0.0, lr_drops=[0.5])
    assert learning_rate(both, 0.6) == pytest.approx(0.1 * 0.4 * 0.1)


def test_the_pyramidnets_have_their_published_sizes() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in PyramidNet(110, alpha, 10).parameters()) for alpha in (48, 84, 270)]
    # 1.7M, 3.8M and 28.3M in Han, Kim and Kim (2017), table 4.
    assert [round(size / 1e6, 1) for size in sizes] == [1.8, 3.9, 28.5]


def test_a_pyramidnet_widens_at_every_block_and_adds_zeros_to_its_shortcuts() -> None:
    model = build_model(Model(name="pyramidnet-14-12"), classes=5, channels=3, size=16, seed=0).eval()
    blocks = list(model.blocks)
    assert [block.conv2.out_channels for block in blocks] == [18, 20, 22, 24, 26, 28]
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    x = torch.randn(2, 20, 8, 8)
    for block in blocks[2:3]:
        with torch.no_grad():
            block.norm3.weight.zero_()
        shortcut = block(x)
        assert shortcut.shape == (2, 22, 4, 4)
        torch.testing.assert_close(shortcut[:, :20], torch.nn.functional.avg_pool2d(x, 2))
        assert not shortcut[:, 20:].any()


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1", "pyramidnet-8-6"])
def test_dropout_of_rate_0_does_nothing_and_draws_nothing(name: str) -> None:
    model = build_model(Model(name=name), classes=10, channels=3, size=16, seed=0)
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert layers
    assert all(layer.p == 0.0 for layer in layers)
    x = torch.randn(4, 3, 16, 16)
    before = torch.get_rng_state()
    plain = model(x)
    assert torch.equal(before, torch.get_rng_state())
    for layer in layers:
        assert layer(x) is x or torch.equal(layer(x), x)
        layer.p = 0.5
    assert not torch.equal(model(x), plain)


def weights_of(name: str, classes: int, path: Path) -> nn.Module:
    model = build_model(Model(name=name), classes=classes, channels=3, size=32, seed=5)
    save_model(path, model.state_dict())
    return model


@pytest.mark.parametrize("name", ["wrn-10-1", "pyramidnet-8-6", "torchvision:resnet18"])
def test_a_model_starts_from_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    saved = weights_of(name, 10, path)
    same = build_model(Model(name=name, weights=str(path)), classes=10, channels=3, size=32, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), saved.state_dict().values(), strict=True))
    other = build_model(Model(name=name, weights=str(path)), classes=4, channels=3, size=32, seed=0)
    fresh = build_model(Model(name=name), classes=4, channels=3, size=32, seed=0)
    head = list(fresh.state_dict())[-2:]
    for key, value in other.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key] if key in head else saved.state_dict()[key])


def test_weights_that_are_not_the_models_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights_of("wrn-10-1", 10, path)

    def start(name: str, **changes: object) -> None:
        config = Model(name=name, **({"weights": str(path)} | changes))  # type: ignore[arg-type]
        build_model(config, classes=10, channels=3, size=32, seed=0)

    with pytest.raises(ExperimentError, match=r"holds the weights of another model: .* and \d+ more like it"):
        start("wrn-10-2")
    with pytest.raises(ExperimentError, match=r"features\.0\.weight is missing and \d+ more like it"):
        start("small-cnn")
    with pytest.raises(ExperimentError, match=r"there is no file .*none\.safetensors of model\.weights"):
        start("wrn-10-1", weights=str(tmp_path / "none.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ExperimentError, match=r"model\.weights: cannot read .* as safetensors"):
        start("wrn-10-1")
    with pytest.raises(ExperimentError, match=r"pretrained = True needs a model of torchvision, not wrn-10-1"):
        start("wrn-10-1", weights=None, pretrained=True)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision looks for the published weights of its smallest model before it downloads them."""
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / Weights.DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    return path


def test_published_weights_are_named_and_their_head_is_replaced(published: Path) -> None:
    from torchvision import models

    state = models.shufflenet_v2_x0_5().state_dict()
    torch.save(state, published)
    for pretrained in (True, "IMAGENET1K_V1"):
        config = Model(name="torchvision:shufflenet_v2_x0_5", pretrained=pretrained)
        model = build_model(config, classes=7, channels=3, size=64, seed=0)
        assert model.fc.out_features == 7
        assert torch.equal(model.conv5[0].weight, state["conv5.0.weight"])
    with pytest.raises(ExperimentError, match=r"model\.pretrained = 'IMAGENET1K_V3'; did you mean IMAGENET1K_V1"):
        build_model(
            Model(name="torchvision:resnet18", pretrained="IMAGENET1K_V3"), classes=7, channels=3, size=64, seed=0
        )


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_published_weights_that_are_more_than_tensors_are_refused(published: Path, tmp_path: Path) -> None:
    torch.save({"conv1.0.weight": Canary(tmp_path / "sang")}, published)
    config = Model(name="torchvision:shufflenet_v2_x0_5", pretrained=True)
    with pytest.raises(ExperimentError, match=r"of torchvision:shufflenet_v2_x0_5 in .* hold more than tensors"):
        build_model(config, classes=7, channels=3, size=64, seed=0)
    assert not (tmp_path / "sang").exists()

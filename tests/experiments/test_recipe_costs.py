"""What recipes cost, how they are listed, and how they are shortened."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from latephase.cli import main
from latephase.experiments.cost import cost_of, measure, parameters_of, quantity
from latephase.experiments.errors import ExperimentError
from latephase.experiments.recipe import load_recipe, recipe_names, scaled
from latephase.experiments.samples import Characters, samples_of
from latephase.experiments.schedule import learning_rate, steps_at


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_operations_are_counted_as_by_hand() -> None:
    recipe = load_recipe("digits", ["--model.width=3", "--model.depth=1", "--data.test_images=500"])
    # One 3x3 convolution of 1 to 3 channels on 8x8 pixels: 64 x 27 multiply-adds, and as many for the gradient of its
    # weights; 4x4x3 inputs of a linear layer of 10: 480, and twice as many backward.
    assert cost_of(recipe).flops_per_sample == 2 * (2 * 64 * 27 + 3 * 480)
    assert samples_of(recipe).train == 1797 - 500 - 297


def test_the_wide_resnet_costs_what_is_published() -> None:
    # 5.2 billion multiply-adds forward (Zagoruyko and Komodakis, 2016); backward takes about twice as many.
    assert cost_of(load_recipe("cifar10-wrn28-10")).flops_per_sample == pytest.approx(3 * 2 * 5.24e9, rel=0.01)


def test_a_recurrent_layer_is_counted_step_by_step_and_text_by_its_characters() -> None:
    recipe = load_recipe("enwik8-lstm-500", ["--text.length=4"])
    V, units = 205, 500
    assert samples_of(recipe).train == 90_000_000
    assert parameters_of(recipe) == V * V + 4 * units * (V + units + 2) + V * (units + 1) == 1_558_730
    # Multiply-adds of one step, and twice as many backward; of a beginning without a state no gradient is wanted.
    forward = 4 * units * (V + units) + units * V
    assert cost_of(recipe).flops_per_sample == 2 * (3 * forward - units * 4 * units // 4)
    assert cost_of(recipe).minibatches == 20 * ((90_000_000 - 1) // (128 * 4))


def test_a_text_without_a_stated_size_is_read() -> None:
    samples = samples_of(load_recipe("text-small"))
    assert isinstance(samples, Characters)
    assert 250_000 < samples.train < 1_000_000
    with pytest.raises(ExperimentError, match=r"there is no text nowhere\.txt"):
        samples_of(load_recipe("text-small", ["--data.train=nowhere.txt"]))


def test_the_cost_of_a_text_is_shown_in_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "enwik8-transformer-6-384"]) == 0
    text = capsys.readouterr().out
    assert "out of 90,000,000 characters" in text
    assert "# 10,779,264 parameters for 205 distinct characters" in text
    assert "of one character" in text
    Path("mine.yaml").write_text(text)
    assert load_recipe("mine.yaml") == load_recipe("enwik8-transformer-6-384")


def test_training_on_text_can_be_measured() -> None:
    ticks = itertools.count()
    recipe = load_recipe("text-small", ["--model.name=lstm-4", "--text.length=8", "--training.batch_size=4"])
    speed = measure(recipe, seconds=20, clock=lambda: float(next(ticks)))
    assert speed.batch_size == 4 * 8
    assert speed.seconds_per_sample == pytest.approx(1 / 32)


def test_what_methods_share_is_counted_once_and_an_ensemble_as_often_as_it_trains() -> None:
    recipe = dataclasses.replace(load_recipe("cifar10-wrn28-10"), seeds=2)
    total = 200 * (50_000 // 128)
    assert cost_of(recipe, ["base"]).minibatches == total
    assert cost_of(recipe, ["base"]).all_minibatches == 2 * total
    assert cost_of(recipe, ["base", "swa"]).all_minibatches == 2 * total
    assert cost_of(recipe, ["late-phase", "twin"]).all_minibatches == 2 * (0.6 * total + 2 * 0.4 * total)
    assert cost_of(recipe, ["deep-ensemble"]).all_minibatches == 2 * 10 * total


def test_more_images_in_a_minibatch_than_there_are_is_an_error() -> None:
    with pytest.raises(ExperimentError, match="batch_size = 6000 is more than the 5000 images"):
        cost_of(load_recipe("tinyimagenet64", ["--training.batch_size=6000", "--data.validation=0"]))


def test_a_measurement_ends_when_its_time_is_over() -> None:
    ticks = itertools.count()
    recipe = load_recipe("digits", ["--training.batch_size=4"])
    speed = measure(recipe, seconds=30, clock=lambda: float(next(ticks)))
    # The clock goes on by one at each look: every step takes one second, for four images.
    assert speed.batch_size == 4
    assert speed.seconds_per_sample == pytest.approx(0.25)
    assert 2 <= speed.steps <= 15


@pytest.mark.parametrize(("value", "text"), [(3.14e17, "314 P"), (999.6, "1.00 k"), (12.34e9, "12.3 G"), (7, "7.00")])
def test_quantities_have_three_digits(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize("name", recipe_names())
def test_a_scaled_recipe_keeps_its_fractions(name: str) -> None:
    recipe = load_recipe(name)
    short = scaled(recipe, 0.1)
    assert short.training.epochs == max(1, round(recipe.training.epochs / 10))
    assert short.evaluate_every >= 1
    for fraction in (0.0, 0.3, 0.55, 0.75, 0.95):
        assert learning_rate(short.training, fraction) == learning_rate(recipe.training, fraction)
    assert short.late_phase == recipe.late_phase
    assert short.swa == recipe.swa


def test_the_papers_epochs_are_where_it_says() -> None:
    for name, epochs, start, average in (
        ("cifar10-wrn28-10", 200, 120, None),
        ("cifar10-wrn28-10-swa", 200, 100, 161),
        ("cifar100-wrn28-14", 300, 120, 241),
        ("imagenet-resnet50", 20, 0, None),
    ):
        recipe = load_recipe(name)
        assert recipe.training.epochs == epochs
        assert steps_at(recipe.late_phase.start, epochs) == start
        if average is not None:
            assert steps_at(recipe.swa.start, epochs) + 1 == average
    rates = [learning_rate(load_recipe("cifar100-wrn28-14").training, epoch / 300) for epoch in (79, 160, 240, 299)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.05], rel=1e-5)
    rates = [learning_rate(load_recipe("imagenet-resnet152").training, epoch / 20) for epoch in (0, 9, 10, 19)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert load_recipe("cifar100-wrn28-10").late_phase.weight_decay == 5e-3
    assert load_recipe("imagenet-resnet50").training.nesterov is False


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_wrong_scale_is_refused(capsys: pytest.CaptureFixture[str], scale: str) -> None:
    assert main(["train", "digits", "--scale", scale]) == 2
    assert "is not valid; it takes a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_the_terminal_with_every_name_and_number_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    for name in recipe_names():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        cost = cost_of(load_recipe(name))
        assert line.split()[-4:] == [*quantity(cost.flops).split(), *quantity(cost.all_flops).split()]
        assert f" {cost.minibatches:,} " in line


def test_one_recipe_is_shown_resolved_and_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "cifar10-wrn16-4", "--training.lr=0.2", "--scale", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "# 7,800 minibatches of 128 out of 50,000 images" in text
    Path("mine.yaml").write_text(text)
    expected = scaled(load_recipe("cifar10-wrn16-4", ["--training.lr=0.2"]), 0.1)
    assert load_recipe("mine.yaml") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "all"], "unknown recipe 'all'"),
        (["recipes", "--training.lr=0.1"], "takes --training.lr=0.1 only after the name of a recipe"),
        (["recipes", "--scale", "half"], "invalid float value: 'half'"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err

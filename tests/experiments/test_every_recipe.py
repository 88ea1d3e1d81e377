"""Every recipe trains: its own model and methods, for a round or two on made-up images or a piece of text."""

import dataclasses

import pytest
import torch

import latephase
from latephase.experiments.config import Data, Recipe
from latephase.experiments.cost import cost_of
from latephase.experiments.data import Images, Split, load_split
from latephase.experiments.methods import METHODS, READINGS, parse_method
from latephase.experiments.outcome import predictor_of
from latephase.experiments.recipe import load_recipe, recipe_names
from latephase.experiments.samples import Characters, samples_of
from latephase.experiments.text import Corpus, load_corpus
from latephase.experiments.trajectory import Trajectory

# What takes longer than this for one image is trained on smaller ones, and with its last method alone: the network is
# the recipe's own, and a pixel more or less changes nothing in it.
_LARGE = 10**9


def short(recipe: Recipe, large: bool, size: int) -> Recipe:
    """Four minibatches of two images with K = 2; start, families, gamma, optimizer and schedule are the recipe's."""
    # Smaller images take smaller holes: of one that is all hole, or two of one value, BatchNorm makes nothing finite.
    cutout, padding = min(recipe.data.cutout, size // 2), min(recipe.data.crop_padding, 2)
    data = dataclasses.replace(recipe.data, subset=None, validation=2, crop_padding=padding, cutout=cutout)
    return dataclasses.replace(
        recipe,
        methods=recipe.methods[-1:] if large else recipe.methods,
        data=data,
        model=dataclasses.replace(recipe.model, pretrained=False, weights=None),
        training=dataclasses.replace(recipe.training, epochs=2, batch_size=2),
        late_phase=dataclasses.replace(recipe.late_phase, members=2),
        deep_ensemble=dataclasses.replace(recipe.deep_ensemble, networks=2),
        dropout=dataclasses.replace(recipe.dropout, passes=2),
        compute=dataclasses.replace(recipe.compute, device="cpu"),
        evaluate_every=2,
    )


# Large networks that another recipe trains too, with other images, labels or schedule.
_AGAIN = ("cifar100-wrn28-10-swa", "cifar100-wrn28-14", "cifar100-pyramidnet", "cifar10-wrn28-10-noisy")
_AGAIN += ("enwik8-transformer-6-384-cosine",)
_NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in _AGAIN else name for name in recipe_names()]


def short_text(recipe: Recipe) -> tuple[Recipe, Corpus]:
    """Four minibatches of two rows of eight characters of the embedded text."""
    recipe = dataclasses.replace(
        short(recipe, large=recipe.model.name == "transformer-6-384", size=8),
        text=dataclasses.replace(recipe.text, length=8, window=32, context=16),
        swa=dataclasses.replace(recipe.swa, every=recipe.swa.every and 1),
    )
    # Of 41 characters 36 are trained on: two minibatches an epoch.
    return recipe, Corpus(load_corpus().raw[:41], "the beginning of the embedded text")


@pytest.mark.parametrize("name", _NAMES)
def test_every_recipe_trains_its_methods(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(name)
    shape = samples_of(recipe)
    data: Split | Corpus
    if isinstance(shape, Characters):
        recipe, data = short_text(recipe)
        predictions, classes = 2, len(data.vocabulary)
    else:
        large = cost_of(recipe, ["base"]).flops_per_sample > _LARGE
        size = shape.size if not large else 64 if shape.size > 64 else 8
        generator = torch.Generator().manual_seed(0)

        def made_up(n: int) -> Images:
            pixels = torch.randint(256, (n, shape.channels, size, size), generator=generator, dtype=torch.uint8)
            return Images(pixels, torch.arange(n) % shape.classes, tuple(map(str, range(shape.classes))), "made up")

        def load(_: Data) -> tuple[Images, Images]:
            return made_up(6), made_up(4)

        monkeypatch.setitem(load_split.__globals__, "load_images", load)
        recipe = short(recipe, large, size)
        data, predictions, classes = load_split(recipe.data, 0), 4, shape.classes
    for method in recipe.methods:
        training, reading = parse_method(method)
        if training.name == "late-phase-hypernetwork" and not hasattr(latephase, "Hypernetwork"):
            continue
        readings = [READINGS[reading.name](recipe)] if reading else []
        trajectory = Trajectory(recipe, data, 0, METHODS[training.name](recipe), readings)
        assert trajectory.total == 4
        first = next(p.detach().clone() for p in trajectory.model.parameters())
        records = []
        trajectory.run(trajectory.total, records.append)
        assert [torch.isfinite(torch.tensor(record["loss"])).item() for record in records] == [True, True]
        assert not torch.equal(first, next(iter(trajectory.model.parameters())).detach().view_as(first))
        x, _ = next(trajectory.task.test())
        logits = predictor_of(trajectory, method).logits(x)
        assert logits.shape == (predictions, classes)
        assert bool(torch.isfinite(logits).all())

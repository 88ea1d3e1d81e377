"""Recipes: what they inherit, what overrides them, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import parse_method
from latephase.experiments.recipe import identity, load_recipe, recipe_from_dict, recipe_names, to_yaml


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_names_methods_that_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.title
    for method in [recipe.method, *recipe.methods]:
        parse_method(method)


def test_a_recipe_shows_only_what_is_special_and_inherits_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("inherits: digits-noisy\ntraining: {lr: 0.2}\n")
    (tmp_path / "row.yaml").write_text("inherits: base.yaml\ntraining: {epochs: 7}\ntitle: a row\n")
    recipe, root = load_recipe(str(tmp_path / "row.yaml")), load_recipe("digits-noisy")
    assert recipe == dataclasses.replace(
        root, title="a row", training=dataclasses.replace(root.training, lr=0.2, epochs=7)
    )


def test_the_command_line_overrides_the_file() -> None:
    recipe = load_recipe("digits-noisy", ["--late_phase.members", "5", "--methods=[base,swa]", "--data.subset=null"])
    assert recipe.late_phase.members == 5
    assert recipe.methods == ["base", "swa"]
    assert recipe.data.subset is None
    assert recipe.data.label_noise == 0.2


def test_a_resolved_recipe_reads_back_to_itself(tmp_path: Path) -> None:
    recipe = load_recipe("digits-noisy", ["--late_phase.base_gradient=0.5", "--seed=3"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    assert recipe_from_dict(dataclasses.asdict(recipe)) == recipe


def test_the_identity_of_a_recipe_is_what_changes_its_numbers() -> None:
    recipe = load_recipe("digits-noisy")
    same = load_recipe("digits-noisy", ["--seeds=3", "--title=other", "--methods=[base]", "--checkpoint_minutes=1"])
    other = load_recipe("digits-noisy", ["--training.lr=0.051"])
    assert identity(recipe) == identity(same)
    assert {k for k, v in identity(recipe).items() if identity(other)[k] != v} == {"training.lr"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--late_phase.membrs=5", "unknown option '--late_phase.membrs'; did you mean --late_phase.members"),
        ("--data.subset=many", "data.subset = many is not valid; it takes int or null"),
        ("--late_phase.members=0", "late_phase.members = 0 is not valid; it takes a whole number from 1"),
        ("--late_phase.start=1.5", "late_phase.start = 1.5 is not valid; it takes a fraction from 0 to 1"),
        ("--swa.start=1.0", "swa.start = 1.0 is not valid; it takes a fraction below 1"),
        ("--data.label_noise=-0.1", "data.label_noise = -0.1 is not valid"),
        ("--late_phase.base_gradient=sumn", "late_phase.base_gradient = sumn is not valid; it takes sum, mean"),
        ("--late_phase.optimizer_state=keep", "late_phase.optimizer_state = keep is not valid"),
        ("--compute.precision=float16", "compute.precision = float16 is not valid"),
        ("--training.linear_until=0.2", "training.linear_until = 0.2 is not valid"),
        ("--training.lr=-1", "training.lr = -1"),
        ("--training.lr_drops=[0.5,0.2]", "training.lr_drops = [0.5, 0.2] is not valid; it takes rising fractions"),
        ("--training.drop_factor=-1", "training.drop_factor = -1"),
        ("--data.resident=maybe", "data.resident = maybe is not valid; it takes true, false or auto"),
        ("--data.padding=wrap", "data.padding = wrap is not valid; it takes zero or reflect"),
        ("--data.flip=sometimes", "data.flip = sometimes is not valid; it takes true, false or alternate"),
        ("--data.cutout=-2", "data.cutout = -2 is not valid; it takes a whole number from 0"),
        ("--data.decode_threads=0", "data.decode_threads = 0 is not valid; it takes null or a whole number from 1"),
        ("--data.resize=3", "data.resize = 3 is not valid; it takes null, or beside data.image_size"),
        ("--data.resized_crop=true", "data.crop_padding = 1 is not valid; it takes 0 where data.resized_crop = true"),
    ],
)
def test_a_wrong_option_is_named_with_what_would_work(option: str, message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        load_recipe("digits-noisy", [option])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainin: {lr: 1}", "unknown key in recipe"),
        ("training: {lr: 1, epoch: 3}", "did you mean training.epochs"),
        ("training: 3", "training must be a section of keys, not 3"),
        ("training: {lr: fast}", "training.lr = fast is not valid; it takes float"),
        ("- a\n- b", "must map keys to values, not be list"),
        ("a: [", "is not valid YAML"),
        ("inherits: digits-nosy", "unknown recipe 'digits-nosy'; did you mean digits-noisy"),
        ("inherits: missing.yaml", "cannot read recipe"),
    ],
)
def test_a_wrong_file_is_named_with_what_would_work(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ExperimentError, match=r"^[^\n]+$") as error:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert message in str(error.value)


def test_recipes_that_inherit_from_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("inherits: b.yaml")
    (tmp_path / "b.yaml").write_text("inherits: a.yaml")
    with pytest.raises(ExperimentError, match="inherits from itself"):
        load_recipe(str(tmp_path / "a.yaml"))

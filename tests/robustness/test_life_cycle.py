"""Random programs over random models and families; the same code that `robustness/fuzz.py` runs at full size."""

import contextlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import test_mutations as mutants
from latephase import averaging, checkpoint, control, members, steps

SCRIPT = Path(__file__).resolve().parents[2] / "robustness" / "fuzz.py"
EXAMPLES = 200
STEPS = 16
ENOUGH = 400
"""Programs of one seed; a broken library must be found out within those of a few seeds."""


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_program_breaks_a_law(fuzz) -> None:
    tally, failure = fuzz.explore(0, EXAMPLES, STEPS)
    assert failure == ""
    assert tally.examples >= EXAMPLES
    assert len(tally.models) > EXAMPLES / 3
    assert tally.compared > EXAMPLES
    assert len(tally.rules) > 20
    assert len(tally.refusals) > 15


def averages_in_half_precision(patch: pytest.MonkeyPatch) -> None:
    """The mean of the members is rounded on its way."""
    exact = averaging.exact_mean
    patch.setattr(members, "exact_mean", lambda stack: exact(stack).float().double())


def forgets_the_sum(patch: pytest.MonkeyPatch) -> None:
    """A state that is loaded brings no gradients of the round's earlier turns."""
    original = checkpoint._load_steps

    def without(part, saved, rounds):
        original(part, {**saved, "sums": {}}, rounds)

    patch.setattr(checkpoint, "_load_steps", without)


def leaves_hooks(patch: pytest.MonkeyPatch) -> None:
    """The collapse forgets the hooks on the model."""
    patch.setattr(control.Control, "remove", lambda self: self._train.remove())


def stays_in_eval(patch: pytest.MonkeyPatch) -> None:
    """train() does not bring the member of the turn back."""
    patch.setattr(members.Members, "show", lambda self, content: None)


def scales_late_gradients(patch: pytest.MonkeyPatch) -> None:
    """gamma acts on late-phase weights too, in the last turn."""
    original = steps.Steps._hand_over

    def scaled(self, base, scale):
        original(self, base, scale)
        for parameter in self.late:
            if parameter.grad is not None:
                parameter.grad = parameter.grad * 0.5

    patch.setattr(steps.Steps, "_hand_over", scaled)


MUTANTS = [
    mutants.another_gamma,
    mutants.forgets_all_but_one,
    mutants.forgets_the_last,
    mutants.shares_moments,
    mutants.plain_means,
    mutants.shares_statistics,
    averages_in_half_precision,
    forgets_the_sum,
    leaves_hooks,
    stays_in_eval,
    scales_late_gradients,
]


@pytest.mark.slow
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda f: f.__name__)
def test_the_machine_finds_a_broken_library(fuzz, mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        assert any("Error" in fuzz.explore(seed, ENOUGH, STEPS, shrink=False)[1] for seed in range(4))


def test_a_failure_is_saved_and_told(
    fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    averages_in_half_precision(monkeypatch)
    found = fuzz.explore(0, 60, 8, shrink=False)
    monkeypatch.setattr(fuzz, "ProcessPoolExecutor", lambda processes: contextlib.nullcontext(Now()))
    monkeypatch.setattr(fuzz, "explore", lambda *_: found)
    monkeypatch.setattr(fuzz, "as_completed", list)
    file = tmp_path / "fuzz.json"
    monkeypatch.setattr("sys.argv", ["fuzz.py", "--examples", "60", "--chunk", "60", "--json", str(file)])
    assert fuzz.main() == 1
    assert "failures: 1" in capsys.readouterr().out
    figures = json.loads(file.read_text())["figures"]
    assert "average: " in figures["failures"][0]
    assert "state.attach(" in figures["failures"][0]
    assert str(SCRIPT.parents[1]) not in figures["failures"][0]


class Now:
    """Runs what is submitted at once, in this process."""

    def submit(self, call, *args):
        value = call(*args)
        return type("Done", (), {"result": staticmethod(lambda: value)})()

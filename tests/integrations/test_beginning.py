"""Beginning: what `start` means, for every trainer alike."""

import doctest

import pytest

import latephase
from latephase.integrations import beginning
from latephase.integrations.beginning import Beginning


@pytest.mark.parametrize(
    ("start", "step"), [("3e", 30), ("0e", 0), (0, 0), (7, 7), (0.5, 25), (0.999, 49), (0.001, 0), (0.29, 14)]
)
def test_steps(start, step: int) -> None:
    found = Beginning(start).resolve(steps_per_epoch=10, total_steps=50, members=2)
    assert found.step == step
    assert [found.due(n) for n in range(50)] == [n >= step for n in range(50)]


def test_the_epoch_counts_where_it_is_told() -> None:
    """An epoch that was cut short, and data without a length."""
    for length in (10, None):
        found = Beginning("3e").resolve(steps_per_epoch=length, members=2, epochs=5)
        assert [found.due(11, epoch=n) for n in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "start", ["3", "e", "3.5e", "-3e", "", "Auto", "3 e", None, True, [3], -1, 0.0, 1.0, 1.5, -0.1]
)
def test_what_it_is_not(start) -> None:
    with pytest.raises(latephase.LatePhaseValueError, match=r"^start: "):
        Beginning(start)


@pytest.mark.parametrize(
    ("start", "total", "words"),
    [
        ("5e", 50, "step 50.*ends after 50"),
        (50, 50, "step 50.*ends after 50"),
        (0.5, None, "length is not known"),
    ],
)
def test_what_the_run_cannot_have(start, total: int | None, words: str) -> None:
    with pytest.raises(latephase.LatePhaseValueError, match=words):
        Beginning(start).resolve(steps_per_epoch=10, total_steps=total, members=2)


def test_epochs_of_unknown_length_end_too() -> None:
    with pytest.raises(latephase.LatePhaseValueError, match="ends after 3 epochs"):
        Beginning("3e").resolve(members=2, epochs=3)


def test_without_a_run_nothing_is_due() -> None:
    for start in ("3e", 0.5, 3, "auto"):
        with pytest.raises(latephase.LatePhaseError, match=r"resolve\(\)"):
            Beginning(start).due(3)


def test_the_argument_is_named_and_auto_may_be_no_choice() -> None:
    with pytest.raises(latephase.LatePhaseValueError, match=r"^swa: 'auto'; (?!.*or 'auto')"):
        Beginning("auto", name="swa", auto=False)


def losses(n: int) -> float:
    return 1.0 / (n + 1)


def test_auto_is_the_start_signal() -> None:
    """The same decision at the same step, also from a state that was saved on the way: before or after `resolve`."""
    signal = latephase.StartSignal(2, 600, min_rounds=150)
    told = [signal.update(losses(n), lr=0.1) for n in range(600)].index(True) + 1
    whole = Beginning("auto").resolve(total_steps=600, members=2)
    assert not whole.due(0)
    assert [whole.due(n + 1, losses(n), lr=0.1) for n in range(600)].index(True) + 1 == told
    for resolved_first in (False, True):
        first = Beginning("auto").resolve(total_steps=600, members=2)
        for n in range(told // 2):
            first.due(n + 1, losses(n), lr=0.1)
        second = Beginning("auto")
        if resolved_first:
            second.resolve(total_steps=600, members=2)
        second.load_state_dict(first.state_dict())
        assert second.state_dict() == first.state_dict()
        second.resolve(total_steps=600, members=2)
        due = [second.due(n + 1, losses(n), lr=0.1) for n in range(told // 2, 600)]
        assert due.index(True) + told // 2 + 1 == told


def test_the_state_of_another_run_is_refused() -> None:
    saved = Beginning("auto").resolve(total_steps=600, members=2).state_dict()
    other = Beginning("auto")
    other.load_state_dict(saved)
    with pytest.raises(latephase.LatePhaseValueError, match="600"):
        other.resolve(total_steps=900, members=2)


def test_without_a_signal_there_is_no_state() -> None:
    found = Beginning("3e")
    found.load_state_dict({})
    assert found.resolve(10, 50, members=2).state_dict() == {}


def test_its_example_runs() -> None:
    assert doctest.testmod(beginning).failed == 0

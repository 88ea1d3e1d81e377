"""Files made to do harm are refused, each by its own test; the code in none of them is run."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("robustness", "benchmarks")]

import hostile  # noqa: E402
from contained import each  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits the memory of what it forks")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each; all in one forked process, whose memory is limited."""
    folder, cases = tmp_path_factory.mktemp("hostile"), [case for case in hostile.CASES if not case.slow]
    outcomes = each(cases, lambda: lambda case: hostile.attack(case, folder / str(cases.index(case))), memory=2**31)
    return dict(zip([case.name for case in cases], outcomes, strict=True))


@pytest.mark.parametrize("case", [case for case in hostile.CASES if not case.slow], ids=lambda case: case.name)
def test_refused(case: hostile.Case, found: dict[str, str]) -> None:
    assert found[case.name].startswith(hostile.FINE), found[case.name]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in hostile.CASES if case.slow], ids=lambda case: case.name)
def test_refused_slowly(case: hostile.Case, tmp_path: Path) -> None:
    (outcome,) = each([case], lambda: lambda one: hostile.attack(one, tmp_path / "made"))
    assert outcome.startswith(hostile.FINE), outcome


def test_the_canary_sings_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    """Or none of these tests could fail."""
    import pickle

    def trusting(folder: Path) -> None:
        pickle.loads(pickle.dumps(hostile.Canary(folder)))

    outcome = hostile.attack(hostile.Case("trusting", trusting), tmp_path / "made")
    assert outcome == "FAILURE: its code was run"

"""What all tests share: one thread, one seed, and Hypothesis without chance, clock or data base."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "latephase",
    derandomize=True,
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("latephase")
torch.set_num_threads(1)  # here as well: fixtures of a module come before those of a test


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of four processes has to say; started once for the tests of several files."""
    from four_ranks import launch

    return launch(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)

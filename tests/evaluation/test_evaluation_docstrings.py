"""The examples in the evaluation's docstrings, and on its page of the documentation, give what they say."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import latephase.evaluation

MODULES = sorted(m.name for m in pkgutil.walk_packages(latephase.evaluation.__path__, "latephase.evaluation."))
PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    outcome = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert outcome.failed == 0


def test_the_page_runs():
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.attempted > 30
    assert outcome.failed == 0

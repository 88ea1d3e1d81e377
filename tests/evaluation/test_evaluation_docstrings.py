"""The examples in the docstrings of the evaluation run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import latephase.evaluation

MODULES = sorted(m.name for m in pkgutil.walk_packages(latephase.evaluation.__path__, "latephase.evaluation."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, extraglobs={"torch": torch})
    assert outcome.failed == 0

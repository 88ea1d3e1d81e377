"""Members of a short run, made once for each file of tests."""

import pytest
import torch
from landscape_cases import CASE

from cases import run
from latephase.evaluation import member_states


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    _, _, late = run(CASE, turns=6)
    return member_states(late), late.averaged_state_dict()

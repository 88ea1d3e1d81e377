"""Exact theory of late-phase weights on the noisy quadratic problem.

Expected losses of late-phase training and of its neighbours (SGD, K-batch SGD, ensembles, SWA, EMA,
Lookahead) in closed form or by exact linear recursions, their steady states and stability limits, the best
start, and a simulation of the literal algorithm to check them against. Needs NumPy only.

Every count of training effort is in minibatches, for every method; the round of a method that takes K
minibatches at a time costs K.
"""

from latephase.nqp.averaging import EMA, SWA
from latephase.nqp.ensemble import Ensemble
from latephase.nqp.late_phase import LatePhase
from latephase.nqp.lookahead import Lookahead
from latephase.nqp.multiplicative import MultiplicativeLatePhase
from latephase.nqp.problem import Problem, power_law
from latephase.nqp.result import Loss
from latephase.nqp.schedule import LinearDecay
from latephase.nqp.sgd import SGD
from latephase.nqp.simulate import Snapshot, simulate, simulate_weights
from latephase.nqp.start import best_start, optimal_start
from latephase.nqp.trajectory import Trajectory

__all__ = [
    "EMA",
    "SGD",
    "SWA",
    "Ensemble",
    "LatePhase",
    "LinearDecay",
    "Lookahead",
    "Loss",
    "MultiplicativeLatePhase",
    "Problem",
    "Snapshot",
    "Trajectory",
    "best_start",
    "optimal_start",
    "power_law",
    "simulate",
    "simulate_weights",
]

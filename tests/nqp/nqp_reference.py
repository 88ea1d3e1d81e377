"""Exact losses of the noisy quadratic problem from 50-digit closed forms, rounded to 15 digits."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from latephase import nqp

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "nqp_cases.json"


class Case(NamedTuple):
    """A method on a problem; points: minibatches -> (averaged model, mean member)."""

    id: str
    method: object
    problem: nqp.Problem
    points: dict[int, tuple[float, float]]
    steady: tuple[float, float]


CASES = [
    Case(
        "lp01_K1_equals_sgd",
        nqp.LatePhase(1, 0.1, 0.1, 1.0),
        nqp.Problem([1.0], [1.0], 1, 2.0, 0.0),
        {
            0: (2.0, 2.0),
            1: (1.3, 1.3),
            5: (0.264338688, 0.264338688),
            50: (0.0555555559516459, 0.0555555559516459),
        },
        steady=(0.0555555555555556, 0.0555555555555556),
    ),
    Case(
        "lp03_K5_nqm20_gamma1overK",
        nqp.LatePhase(5, 0.25, 0.25, 1 / 5),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            5: (1.19080076795796, 1.23070484905579),
            50: (0.364316118205772, 0.502341744627865),
            500: (0.102928955208418, 0.292527226145082),
            2000: (0.102352931071261, 0.293273982163475),
        },
        steady=(0.102352931013944, 0.293274233814703),
    ),
    Case(
        "lp05_K10_nqm20_B4",
        nqp.LatePhase(10, 0.5, 0.5, 1 / 10, perturbation_variance=0.01),
        nqp.Problem(nqp.power_law(20), None, 4, 1.0, 0.5),
        {
            10: (1.22546593951161, 1.2807161009284),
            100: (0.187430723893425, 0.289117066998564),
            1000: (0.0309988868379249, 0.146116767108895),
        },
        steady=(0.0309959151295567, 0.146142962520243),
    ),
    Case(
        "lp07_K4_theta_frozen_full_ensemble",
        nqp.LatePhase(4, 0.0, 0.4, 1.0),
        nqp.Problem(nqp.power_law(10), None, 1, 1.0, 0.0),
        {
            4: (0.971374947994777, 1.06436101186477),
            80: (0.124995768291239, 0.365389967191647),
            400: (0.082460738624616, 0.329773007477801),
        },
        steady=(0.0824386141392368, 0.329754456556947),
    ),
    Case(
        "lp09_flat_direction",
        nqp.LatePhase(2, 0.5, 0.2, 1 / 2, perturbation_variance=0.1),
        nqp.Problem([1.0, 0.1, 0.0], [1.0, 1.0, 1.0], 1, 1.0, 0.0),
        {
            2: (0.21527975, 0.24369075),
            20: (0.147607268486485, 0.17710597797717),
            400: (0.135522120366693, 0.163553118621543),
        },
        steady=(0.13552212036668, 0.163552423396983),
    ),
    Case(
        "lp11_near_limit_diff",
        nqp.LatePhase(5, 0.05, 1.9, 1 / 5),
        nqp.Problem([1.0], [1.0], 1, 1.0, 0.0),
        {
            5: (0.8315, 2.2755),
            50: (2.68114786381096, 9.35716528892263),
            300: (3.89278375031243, 11.4927592080427),
        },
        steady=(3.9, 11.5),
    ),
    Case(
        "ls13_K5_T0_100",
        nqp.LatePhase(5, 0.25, 0.25, 1 / 5, perturbation_variance=0.01, start=100, sgd_lr=0.5),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            100: (0.51581529584798, 0.530206254476555),
            105: (0.354877488219205, 0.406280418418269),
            200: (0.125104677246195, 0.289728160613981),
            500: (0.102762537829876, 0.291315700872369),
        },
        steady=(0.102352931013944, 0.293274233814703),
    ),
    Case(
        "sgd15",
        nqp.SGD(0.5),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            1: (1.35041709234926, 1.35041709234926),
            10: (0.717031164948738, 0.717031164948738),
            100: (0.512217556190837, 0.512217556190837),
            500: (0.511764655069973, 0.511764655069973),
        },
        steady=(0.511764655069718, 0.511764655069718),
    ),
    Case(
        "kbatch17",
        nqp.SGD(0.5, batch_multiplier=5),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            5: (1.19080076795796, 1.19080076795796),
            50: (0.364316118205772, 0.364316118205772),
            500: (0.102928955208418, 0.102928955208418),
        },
        steady=(0.102352931013944, 0.102352931013944),
    ),
    Case(
        "swa19",
        nqp.SWA(0.5, window=50),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            100: (0.133587549120653, 0.133587549120653),
            300: (0.131238044235897, 0.131238044235897),
        },
        steady=(0.131238008801049, 0.131238008801049),
    ),
    Case(
        "ema21",
        nqp.EMA(0.5, decay=0.98),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            10: (1.46250318666588, 1.46250318666588),
            100: (0.129162735231024, 0.129162735231024),
            400: (0.0735126768701359, 0.0735126768701359),
        },
        steady=(0.0735122935337739, 0.0735122935337739),
    ),
    Case(
        "la23_k5_a05",
        nqp.Lookahead(0.5, k=5, alpha=0.5),
        nqp.Problem(nqp.power_law(20), None, 1, 1.0, 0.0),
        {
            5: (1.05893341557576, 1.05893341557576),
            50: (0.280412932508441, 0.280412932508441),
            400: (0.207955855077693, 0.207955855077693),
        },
        steady=(0.207952903648959, 0.207952903648959),
    ),
    Case(
        "lp25_gamma1_unequal_split",
        nqp.LatePhase(8, 0.02, 0.35, 1.0, perturbation_variance=0.02),
        nqp.Problem([1.0, 0.25, 0.04], [0.5, 1.0, 4.0], 2, 0.5, 0.2),
        {
            8: (0.11025885314175, 0.1299414309605),
            56: (0.0209859792923373, 0.0468982677380216),
            480: (0.00669025968102223, 0.0326588017630717),
        },
        steady=(0.00593163920217416, 0.0318811663512193),
    ),
]


def shared_file() -> dict:
    """The full file of reference values, which a bare checkout does not have."""
    if not SHARED.exists():
        pytest.skip(f"no reference values beside the repository: {SHARED.parent.name}/{SHARED.name}")
    return json.loads(SHARED.read_text())


def shared_problem(given: dict) -> nqp.Problem:
    """The problem of one of the file's cases."""
    h, s = given["h"], given["s2"]
    curvature = nqp.power_law(h["n"]) if isinstance(h, dict) else h
    return nqp.Problem(curvature, None if s == "1/h" else s, given["B"], given.get("m0", 1.0), given.get("v0", 0.0))


def shared_method(given: dict) -> object:
    """The method of one of the file's cases."""
    kind = given["method"]
    if kind in ("late_phase", "late_start"):
        members, scale = given["K"], given["gam"]
        return nqp.LatePhase(
            members,
            given["et"],
            given["ep"],
            1 / members if abs(scale * members - 1) < 1e-12 * members else scale,
            given.get("s0sq", 0.0),
            given.get("T0", 0),
            given.get("eta_sgd"),
        )
    lr = given["eta"]
    if kind == "kbatch":
        return nqp.SGD(lr, batch_multiplier=given["K"])
    if kind == "full_ensemble":
        return nqp.Ensemble(lr, given["K"])
    if kind == "swa":
        return nqp.SWA(lr, None if given["m"] == "T" else given["m"])
    if kind == "ema":
        return nqp.EMA(lr, given["beta"])
    if kind == "lookahead":
        return nqp.Lookahead(lr, given["k"], given["alpha"])
    assert kind == "sgd"
    return nqp.SGD(lr)

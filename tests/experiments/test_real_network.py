"""The quadratic model of a network: exact on a quadratic, made of exact derivatives, and run as Algorithm 1 says."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import latephase
from latephase import cli, nqp
from latephase.experiments.models import SmallCNN
from latephase.experiments.real_network import quadratic as model_of
from latephase.experiments.real_network.figures import standalone
from latephase.experiments.real_network.findings import findings, headline
from latephase.experiments.real_network.measure import draw, run
from latephase.experiments.real_network.objective import Objective, flat_weights, of_model
from latephase.experiments.real_network.page import table
from latephase.experiments.real_network.schemes import late_weights, schemes
from latephase.experiments.real_network.setting import Setting
from latephase.experiments.real_network.study import noise_and_place

MEMBERS, BATCH = 3, 4


@pytest.fixture(scope="module")
def least_squares():
    """Regression of scattered targets on one fixed design: the loss is quadratic, its noise the same everywhere."""
    generator = torch.Generator().manual_seed(3)
    design = torch.randn(8, 6, generator=generator, dtype=torch.float64) / 3
    targets = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    unused = torch.zeros(50, 1, dtype=torch.float64)
    objective = Objective(lambda w, _, y: 0.5 * (design @ w - y).square().sum(-1).mean(), unused, targets)
    start = 2 * torch.randn(6, generator=generator, dtype=torch.float64)
    centre = torch.randn(6, generator=generator, dtype=torch.float64)
    return objective, start, centre


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SmallCNN(3, 1, 8, width=2).double()
    inputs = torch.randn(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (12,), generator=generator)
    model(inputs)  # statistics that are not those of a fresh layer
    return model, inputs, labels, of_model(model, inputs, labels, 0.02)


LATE = torch.tensor([True, False, False, True, False, False])


@pytest.mark.parametrize("scheme", schemes(LATE, 0.3, MEMBERS), ids=lambda scheme: scheme.name)
def test_prediction_is_what_a_quadratic_does(least_squares, scheme):
    objective, start, centre = least_squares
    replicas, counts = 600, [0, 3, 12, 60]
    expansion = model_of.expand(objective, centre)
    found = model_of.directions(expansion, scheme.effective_lr, start)
    average = found.losses(scheme.members, BATCH, counts)
    member = average + model_of.member_excess(expansion, scheme, BATCH, counts)
    runs = run(scheme, objective.minibatch_gradients, start, draw(50, replicas, 60, BATCH, 5), counts)
    for where, expected in ((runs.average, average), (runs.member, member)):
        losses = torch.stack([objective.losses(weights) for weights in where]).numpy()
        assert losses[0] == pytest.approx(expected[0], rel=1e-12)
        error = losses.std(1, ddof=1) / replicas**0.5
        z = (losses - expected[:, None]).mean(1)[1:] / error[1:]
        assert np.all(np.abs(z) < 4), z
    noise, place = noise_and_place(objective.losses, runs.average)
    parts = found.noise_part(scheme.members, BATCH, counts).sum(1)
    z = (noise.mean(1).numpy() - parts)[1:] / (noise.std(1).numpy()[1:] / replicas**0.5)
    assert np.all(np.abs(z) < 4), z
    assert place.numpy() == pytest.approx(average - parts, rel=0.05)


def test_equal_rates_are_the_additive_late_phase(least_squares):
    objective, start, centre = least_squares
    scheme = next(s for s in schemes(LATE, 0.3, MEMBERS) if s.name == "additive")
    expansion = model_of.expand(objective, centre)
    found = model_of.directions(expansion, scheme.effective_lr, start)
    counts = [0, 3, 30]
    late = nqp.LatePhase(MEMBERS, 0.15, 0.15, 1 / MEMBERS).expected_loss(found.problem(BATCH), counts)
    average = found.losses(MEMBERS, BATCH, counts)
    assert average - average[0] == pytest.approx(late.average - late.average[0], rel=1e-10)
    excess = model_of.member_excess(expansion, scheme, BATCH, counts)
    assert excess == pytest.approx(late.members - late.average, rel=1e-10)


def test_noise_along_each_direction(least_squares):
    objective, start, centre = least_squares
    scheme = schemes(LATE, 0.3, MEMBERS)[-1]  # with rates that differ between weights
    found = model_of.directions(model_of.expand(objective, centre), scheme.effective_lr, start)
    runs = run(scheme, objective.minibatch_gradients, start, draw(50, 2000, 60, BATCH, 6), [60])
    variance = ((runs.average[0] - runs.average[0].mean(0)) @ found.basis).square().mean(0).numpy()
    expected = found.noise_part(scheme.members, BATCH, [60])[0]
    assert 0.5 * found.curvature * variance == pytest.approx(expected, rel=4 * (2 / 2000) ** 0.5)


def test_flat_and_negative_directions_follow_the_slope():
    hessian = torch.diag(torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64))
    gradient = torch.tensor([0.0, 0.2, -0.3], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    expansion = model_of.Quadratic(torch.zeros(3, dtype=torch.float64), 5.0, gradient, hessian, deviations)
    start = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    found = model_of.directions(expansion, torch.full((3,), 0.1, dtype=torch.float64), start)
    assert found.negative == 1
    assert found.curved.tolist() == [True, False, False]
    average = found.losses(1, 1, [0, 10])
    assert average[0] == pytest.approx(5.0 + 0.2 - 0.3)
    noise = found.noise_part(1, 1, [10]).sum()
    assert average[1] - noise == pytest.approx(average[0] - 0.1 * 10 * (0.2**2 + 0.3**2))


def test_derivatives_equal_finite_differences(network):
    model, _, _, objective = network
    weights = flat_weights(model)
    hessian, step = objective.hessian(weights), 1e-6
    assert torch.equal(hessian, hessian.T)
    for i in range(0, len(weights), 9):
        shift = torch.zeros_like(weights)
        shift[i] = step
        column = (objective.gradient(weights + shift) - objective.gradient(weights - shift)) / (2 * step)
        assert hessian[:, i] == pytest.approx(column, abs=1e-6)
    each = torch.stack([objective.minibatch_gradients(weights[None], torch.tensor([[i]]))[0] for i in range(12)])
    assert objective.deviations(weights) == pytest.approx(each - objective.gradient(weights), abs=1e-12)


def test_linear_gradients_keep_each_minibatchs_hessian(network):
    model, _, _, objective = network
    centre = flat_weights(model)
    direction = torch.linspace(-1, 1, len(centre), dtype=torch.float64)
    index = torch.tensor([[0, 3, 3], [1, 2, 5]])
    linear = objective.linear_gradients(centre)
    step = 1e-6
    at_centre = objective.minibatch_gradients(centre.expand(2, -1), index)
    ahead = objective.minibatch_gradients((centre + step * direction).expand(2, -1), index)
    behind = objective.minibatch_gradients((centre - step * direction).expand(2, -1), index)
    expected = at_centre + (ahead - behind) / (2 * step)
    assert linear((centre + direction).expand(2, -1), index) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "base_gradient"), [("norm-head-mean", "mean"), ("norm-head-sum", "sum")])
def test_members_train_as_the_library_trains_them(network, name, base_gradient):
    _, inputs, labels, objective = network
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SmallCNN(3, 1, 8, width=2).double()
    model.load_state_dict(network[0].state_dict())
    start, lr, rounds = flat_weights(model), 0.05, 4
    scheme = next(s for s in schemes(late_weights(model), lr, MEMBERS) if s.name == name)
    index = draw(12, 1, MEMBERS * rounds, BATCH, 2)
    literal = run(scheme, objective.minibatch_gradients, start, index, [MEMBERS * rounds])
    phase = latephase.LatePhase(model, members=MEMBERS, base_gradient=base_gradient)
    optimizer = phase.optimizer(torch.optim.SGD(model.parameters(), lr=lr))
    phase.start()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for chosen in index[:, 0]:
        optimizer.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        (nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]) + 0.01 * penalty).backward()
        optimizer.step()
    with phase.member(0):
        first = flat_weights(model)
    with phase.average():
        average = flat_weights(model)
    assert literal.member[0, 0] == pytest.approx(first, abs=1e-12)
    assert literal.average[0, 0] == pytest.approx(average, abs=1e-12)
    assert (first - average).abs().max() > 1e-4


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def committed():
    folder = ROOT / "results" / "real-network"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def test_the_theory_page_shows_the_committed_run(committed):
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    section = text.split("## 5. A real network")[1].split("\n## ")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert shown[2:] == [list(row[:6]) for row in table(committed["noisy"]).rows]
    printed = []
    for results in committed.values():
        cells = (cell for row in table(results).rows for cell in row)
        printed += [headline(results), *findings(results), *cells]
    numbers = set(re.findall(r"\d+\.\d+", " ".join(printed)))
    prose = "\n".join(line for line in section.splitlines() if line[:1] != "|")
    mentioned = re.findall(r"\d+\.\d+", re.sub(r"```.*?```", "", prose, flags=re.DOTALL))
    assert len(mentioned) >= 8
    assert not [value for value in mentioned if value not in numbers]


def test_results_readme_shows_the_committed_runs(committed):
    text = (ROOT / "results" / "real-network" / "README.md").read_text(encoding="utf-8")
    for results in committed.values():
        assert results["command"] in text
        for row in table(results).rows:
            assert "| " + " | ".join(row[:6]) + " |" in text


SMALL = {
    "images": 40, "width": 1, "depth": 1, "warm_up": 20, "settling": 8, "descent": 3, "minibatches": 40, "members": 2,
    "replicas": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("real")
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    assert cli.main(["nqp-real", *options, "--output", str(path)]) == 0
    return path


def test_run_folder(folder):
    results = json.loads((folder / "results.json").read_text())
    assert {"command", "commit", "versions", "device", "seconds"} <= results.keys()
    assert results["setting"] == vars(replace(Setting(), **SMALL))
    assert results["network"]["weights"] == len(results["curvature"]) == 9 + 2 + 16 * 10 + 10
    assert results["network"]["late_weights"] == 2 + 16 * 10 + 10
    with (folder / "csv" / "loss-curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * len(results["counts"])
    for row in rows[:: len(results["counts"])]:
        assert float(row["measured"]) == pytest.approx(results["network"]["loss_at_start"], rel=1e-12)


def test_page_needs_nothing_but_itself(folder):
    page = (folder / "report.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in page
    figure = (folder / "loss-curves.svg").read_text()
    assert figure.startswith("<svg")
    assert "--series-0" in figure
    assert figure == standalone(re.search(r"<svg role.*?</svg>\n", page, re.DOTALL)[0])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--minibatches=30", "multiple of 20 rounds"),
        ("--replicas=1", "--replicas 1"),
        ("--lr=0", "--lr 0"),
        ("--label_noise=2", "--label_noise 2"),
        ("--images=5000", "too few"),
        ("--lr=x", "lr"),
    ],
)
def test_mistakes_are_one_line(option, says, tmp_path, capsys):
    assert cli.main(["nqp-real", option, "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())

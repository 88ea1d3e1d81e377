"""Trace and eigenvalues of the Hessian against the dense one, in float64, on small nets."""

import builtins
import copy
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from cases import Case, run
from latephase import LatePhaseError, LatePhaseValueError
from latephase.evaluation.flatness import flatness
from latephase.evaluation.flatness.hessian import hutchinson
from latephase.evaluation.flatness.operator import hessian_operator, products


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))


def normed():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3), nn.LayerNorm(3)
    )


MODELS = {"mlp": (mlp, (3,)), "normed": (normed, (2, 4, 4))}


def make(name, batches=3):
    torch.manual_seed(1)
    build, shape = MODELS[name]
    model = build().double()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, *shape, dtype=torch.float64))
    data = [
        (torch.randn(6 + i, *shape, dtype=torch.float64), torch.randint(3, (6 + i,))) for i in range(batches)
    ]  # uneven, so that the weights of batches matter
    return model, data


def dense(model, data, names=None):
    """The Hessian by double backward through torch.func, of all samples in one batch, in eval mode."""
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    named = {n: p.detach() for n, p in model.named_parameters() if names is None or n in names}
    sizes = [p.numel() for p in named.values()]
    model = copy.deepcopy(model).eval()

    def loss(vector):
        parts = vector.split(sizes)
        values = {n: part.view_as(p) for (n, p), part in zip(named.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, values, (x,)), y)

    vector = torch.cat([p.flatten() for p in named.values()])
    return torch.autograd.functional.hessian(loss, vector), loss(vector).item()


@pytest.mark.parametrize("name", MODELS)
def test_trace_and_eigenvalues_against_the_dense_hessian(name):
    model, data = make(name)
    judge, loss = dense(model, data)
    found = flatness(model, data, probes=60, eigenvalues=4, tolerance=0.0)
    top = torch.linalg.eigvalsh(judge).flip(0)[:4].tolist()
    assert found.eigenvalues == pytest.approx(top, rel=1e-9)
    assert max(found.residuals) < 1e-9 * top[0]
    assert abs(found.trace - float(judge.trace())) < 4 * found.trace_standard_error
    assert 0 < found.trace_standard_error < 0.3 * abs(float(judge.trace()))
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.parameters == len(judge)
    assert found.samples == 21
    assert found.batch_norm == ("eval mode" if name == "normed" else "none")
    assert json.loads(json.dumps(found.to_dict()))["trace"] == found.trace


@pytest.mark.parametrize("name", MODELS)
def test_products_against_finite_differences_of_the_gradient(name):
    """Through LayerNorm too, where torch's jvp of jacrev is wrong."""
    model, data = make(name)
    model.eval()
    parameters = list(model.parameters())
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    v = [torch.randn_like(p) for p in parameters]

    def gradient(step):
        with torch.no_grad():
            torch._foreach_add_(parameters, v, alpha=step)
        found = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, v, alpha=-step)
        return torch.cat([g.flatten() for g in found])

    operator = hessian_operator(model, nn.CrossEntropyLoss(), parameters, data, len(y))
    product = operator @ torch.cat([t.flatten() for t in v])
    judge = (gradient(1e-6) - gradient(-1e-6)) / 2e-6
    torch.testing.assert_close(product, judge, rtol=1e-5, atol=1e-6 * float(judge.abs().max()))


def test_products_where_some_gradients_are_constant():
    a, b, unused = (nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64)) for _ in range(3))
    columns = [torch.eye(2, dtype=torch.float64)] * 3
    found = products((a**3).sum() + 5 * b.sum(), [a, b, unused], columns)
    assert [t.tolist() for t in found] == [[[6, 0], [0, 12]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert products(b.sum(), [b], columns[:1])[0].tolist() == [[0, 0], [0, 0]]


def test_trace_is_the_mean_of_the_probes_quadratic_forms():
    """With the same probes the estimate from the dense matrix is the same number, standard error included."""
    model, data = make("mlp")
    judge, _ = dense(model, data)
    found = flatness(model, data, probes=7, eigenvalues=0, seed=3)
    expected = hutchinson(judge, 7, 3, judge)
    assert (found.trace, found.trace_standard_error) == pytest.approx(expected, rel=1e-9)
    assert (found.eigenvalues, found.residuals) == ((), ())


def test_hutchinson_is_exact_for_a_diagonal_matrix_and_its_error_bar_is_right():
    diagonal = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    assert hutchinson(diagonal, 2, 0, diagonal) == (15.0, 0.0)
    full = torch.randn(6, 6, dtype=torch.float64)
    full = full + full.T
    # The variance of one probe of signs is 2 sum_{i != j} H_ij^2.
    variance = 2 * float(full.square().sum() - full.diagonal().square().sum())
    trace, deviation = hutchinson(full, 3000, 0, full)
    assert deviation == pytest.approx((variance / 3000) ** 0.5, rel=0.05)
    assert abs(trace - float(full.trace())) < 4 * deviation


def test_largest_eigenvalues_are_those_by_value_and_residuals_bound_their_error():
    model, data = make("mlp")
    judge, _ = dense(model, data)
    spectrum = torch.linalg.eigvalsh(judge)
    assert spectrum[0] < 0  # so that a rule by magnitude could differ
    rough = flatness(model, data, probes=2, eigenvalues=3, tolerance=0.1)
    for value, residual in zip(rough.eigenvalues, rough.residuals, strict=True):
        assert float((spectrum - value).abs().min()) <= residual + 1e-12


def test_the_model_is_left_alone_and_its_mode_does_not_matter():
    model, data = make("normed")
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    found = flatness(model, data, probes=3, eigenvalues=1)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert found == flatness(model.eval(), data, probes=3, eigenvalues=1)
    assert found.trace != flatness(model, data, probes=3, eigenvalues=1, seed=1).trace


def test_a_pattern_picks_a_block_of_the_hessian():
    model, data = make("normed")
    model[5].bias.requires_grad_(False)
    judge, _ = dense(model, data, names={"1.weight", "1.bias"})
    found = flatness(model, data, parameters="1.*", probes=2, eigenvalues=2, tolerance=0.0)
    assert found.parameters == 6
    assert found.eigenvalues == pytest.approx(torch.linalg.eigvalsh(judge).flip(0)[:2].tolist(), rel=1e-9)
    assert (
        flatness(model, data, parameters="5.*", probes=2, eigenvalues=0).parameters == 3
    )  # frozen weights do not count


def test_single_precision_agrees_to_its_rounding():
    model, data = make("mlp")
    double = flatness(model, data, probes=4, eigenvalues=2)
    single = flatness(model.float(), [(x.float(), y) for x, y in data], probes=4, eigenvalues=2)
    assert single.trace == pytest.approx(double.trace, rel=1e-3)
    assert single.eigenvalues == pytest.approx(double.eigenvalues, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"probes": 1}, "probes: 1"),
        ({"eigenvalues": -1}, "eigenvalues: -1"),
        ({"eigenvalues": 38}, "38 eigenvalues of 38 parameters"),
        ({"parameters": "head.*"}, r"'head\.\*' matches none of the 4 trainable parameters of Sequential \(0\.weight"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "reduction='mean'"),
    ],
)
def test_bad_options_are_refused(options, says):
    model, data = make("mlp")
    with pytest.raises(LatePhaseValueError, match=says):
        flatness(model, data, **options)


def test_bad_data_and_models_are_refused():
    model, data = make("mlp")
    with pytest.raises(LatePhaseValueError, match="no samples"):
        flatness(model, [])
    with pytest.raises(LatePhaseValueError, match="spent after one pass"):
        flatness(model, iter(data))
    with pytest.raises(LatePhaseValueError, match="the model has 3 classes"):
        flatness(model, [(data[0][0], data[0][1] + 3)])
    with pytest.raises(LatePhaseError, match="reached the tolerance"):
        flatness(model, data, probes=2, eigenvalues=12, tolerance=0.0, max_restarts=1)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(LatePhaseError, match="the loss is nan"):
        flatness(model, data)
    shared, _, _ = run(Case(), turns=1)
    with pytest.raises(LatePhaseError, match="averaged_state_dict"):
        flatness(shared, list(Case().batches(1)))


def test_without_curvlinops_it_says_what_to_install(monkeypatch):
    model, data = make("mlp")
    for name in [n for n in sys.modules if n.partition(".")[0] == "curvlinops"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "curvlinops":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LatePhaseError, match=r"pip install 'latephase\[flatness\]'"):
        flatness(model, data)
    assert model.training

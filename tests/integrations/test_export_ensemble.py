"""The members as one module: their outputs in one pass, what it holds, and that it stands alone."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import latephase
from cases import EVERY, Case, assert_same, run, tensors, train
from latephase.export import Ensemble, write
from latephase.export.program import batch_is_dynamic, trace


def batch_of(case: Case, size: int = 5) -> Tensor:
    ((x, _),) = case.batches(1, size, first=70)
    return x


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_one_pass_is_the_loop_over_the_members(case: Case) -> None:
    model, _, late = run(case, 4)
    x = batch_of(case)
    expected = late.predict(x)
    before, turn, mode = tensors(model), late.turn, model.training
    ensemble = Ensemble(late)
    assert_same(tensors(model), before)
    assert (late.turn, late.phase, model.training) == (turn, "late", mode)
    assert ensemble.vectorised == (case.model not in ("lstm", "gru"))
    torch.testing.assert_close(ensemble(x), expected, rtol=1e-12, atol=1e-12)
    ensemble.vectorised = False
    torch.testing.assert_close(ensemble(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("family", ["norm+head", "rank-one", "hypernetwork", "lora"])
def test_what_is_shared_is_held_once(family: str) -> None:
    case = Case(family=family)
    model, _, late = run(case, 4)
    state = Ensemble(late).state_dict()
    buffers = {n for n, _ in model.named_buffers()}
    names = set(late.late_names()) | {n for n in buffers if n.startswith("bn")}  # their running statistics
    assert {name.removeprefix("members.") for name in state if name.startswith("members.")} == names
    held = dict((*model.named_parameters(), *model.named_buffers()))
    held = {n: t for n, t in held.items() if not n.endswith(".initial")}  # which is not persistent
    assert {name.removeprefix("shared.") for name in state if name.startswith("shared.")} == set(held) - names
    assert all(state[f"members.{n}"].shape == (case.members, *held[n].shape) for n in names)
    for k in range(case.members):
        with late.member(k):
            own = tensors(model)
            assert_same({n: state[f"members.{n}"][k] for n in names}, {n: own[n] for n in names})


@pytest.mark.parametrize(
    "case",
    [Case(), Case(family="rank-one"), Case("lstm", "rank-one"), Case("decoder", "lora"), Case("tied", "norm")],
    ids=str,
)
def test_it_stands_alone(case: Case) -> None:
    model, optimizer, late = run(case, 4)
    x = batch_of(case)
    ensemble = Ensemble(late)
    expected = ensemble(x)
    train(case, model, optimizer, case.batches(2, first=20))
    assert not torch.equal(late.predict(x), expected)
    assert torch.equal(ensemble(x), expected)
    late.collapse()
    train(case, model, optimizer, case.batches(1, first=30))
    assert torch.equal(ensemble(x), expected)
    assert torch.equal(ensemble.train()(x), expected)  # its forward is that of eval mode, always
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())


@pytest.mark.parametrize(
    "case", [Case(), Case(family="rank-one"), Case(family="hypernetwork"), Case("decoder", "lora-frozen")], ids=str
)
def test_it_is_saved_and_loaded_as_safetensors(case: Case, tmp_path: Path) -> None:
    _, _, late = run(case, 4)
    x, ensemble = batch_of(case), Ensemble(late)
    save_file(ensemble.state_dict(), tmp_path / "members.safetensors")
    plain = case.plain(seed=5)
    before = tensors(plain)
    blank = Ensemble.blank(plain, case.members, case.weights())
    assert list(blank.state_dict()) == list(ensemble.state_dict())
    assert not torch.equal(blank(x), ensemble(x))
    blank.load_state_dict(load_file(tmp_path / "members.safetensors"))
    assert torch.equal(blank(x), ensemble(x))
    assert_same(tensors(plain), before)


def test_mean_probabilities() -> None:
    case = Case()
    _, _, late = run(case, 4)
    x = batch_of(case)
    expected = late.predict(x).softmax(-1).mean(0)
    torch.testing.assert_close(Ensemble(late, output="probabilities")(x), expected, rtol=1e-12, atol=1e-12)


class Halting(nn.Module):
    """Takes a way that depends on a value, which no vectorised pass can; returns a dict that is not all tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict:
        h = self.norm(x)
        logits = self.fc(h if h.abs().max().item() > 1e-3 else -h)
        return {"hidden": h, "logits": logits, "kind": "halting", "nothing": None}


def test_what_vmap_cannot_run_is_run_member_by_member(caplog: pytest.LogCaptureFixture) -> None:
    model = Halting().double()
    late = latephase.LatePhase(model, members=3, noise=0.1)
    late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    x = torch.randn(5, 4, dtype=torch.float64)
    ensemble = Ensemble(late)
    with caplog.at_level(logging.WARNING):
        outputs = ensemble(x)
    assert not ensemble.vectorised
    assert "follow one another" in caplog.text
    assert ".item()" in caplog.text
    expected = late.predict(x)
    assert outputs.keys() == expected.keys()
    assert torch.equal(outputs["logits"], expected["logits"])
    assert (outputs["kind"], outputs["nothing"]) == ("halting", None)
    probabilities = Ensemble(late, output="probabilities")
    torch.testing.assert_close(probabilities(x), expected["logits"].softmax(-1).mean(0), rtol=1e-12, atol=1e-12)


def test_an_error_of_the_model_is_not_taken_for_one_of_vmap() -> None:
    _, _, late = run(Case(), 2)
    ensemble = Ensemble(late)
    with pytest.raises(RuntimeError, match="channels"):
        ensemble(torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    assert ensemble.vectorised


def test_a_phase_without_members_has_no_ensemble() -> None:
    _, _, late = Case().attach()
    with pytest.raises(latephase.LatePhaseError, match=r"before start"):
        Ensemble(late)
    late.start()
    with pytest.raises(latephase.LatePhaseValueError, match=r"output: 'mean'; use one of 'members', 'probabilities'"):
        Ensemble(late, output="mean")


EXPORTED = [
    replace(case, dtype=torch.float32)
    for case in (Case(), Case(family="rank-one"), Case("decoder", "norm", "adamw"), Case("lstm", "rank-one"))
]
SLOW = pytest.mark.slow


def targets(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("case", [EXPORTED[0], *(pytest.param(c, marks=SLOW) for c in EXPORTED[1:])], ids=str)
def test_for_one_size_of_batch_its_graph_runs_each_operator_once(case: Case, tmp_path: Path) -> None:
    _, _, late = run(case, 4)
    x = batch_of(case, 7)
    ensemble = Ensemble(late)
    program = trace(ensemble, (x,), None)
    assert not [target for target in targets(program) if "functorch" in target or "vmap" in target]
    assert set(program.state_dict) == set(ensemble.state_dict())
    torch.testing.assert_close(program.module()(x), late.predict(x), rtol=1e-5, atol=1e-6)
    if case.model == "bn_cnn":
        assert sum("conv" in target for target in targets(program)) == 3
    if case.model == "decoder":
        softmaxes = [target for target in targets(program) if "softmax" in target]
        assert len(softmaxes) == 1, softmaxes
    written = write(ensemble, (x,), tmp_path / "members.onnx", "onnx", dynamic=False)
    assert written.outputs.largest < 1e-5
    assert ("follow one another" in written.note) == (case.model == "lstm")


@pytest.mark.parametrize("case", [EXPORTED[1], *(pytest.param(c, marks=SLOW) for c in EXPORTED[2:])], ids=str)
def test_for_any_size_of_batch_its_members_follow_one_another_in_one_graph(case: Case, tmp_path: Path) -> None:
    _, _, late = run(case, 4)
    x = batch_of(case, 7)
    ensemble = Ensemble(late)
    way = ensemble.vectorised
    program = trace(ensemble, (x[:3],), batch_is_dynamic((x,)))
    assert ensemble.vectorised == way
    for size in (1, 7):
        torch.testing.assert_close(program.module()(x[:size]), late.predict(x[:size]), rtol=1e-5, atol=1e-6)
    assert sum("conv" in target for target in targets(program)) == (3 * case.members if case.model == "bn_cnn" else 0)
    assert set(program.state_dict) == set(ensemble.state_dict())
    written = write(ensemble, (x[:3],), tmp_path / "members.onnx", "onnx", check=(x,))
    assert written.outputs.largest < 1e-5
    assert written.note == "the members follow one another in the graph"
    session = onnxruntime.InferenceSession(tmp_path / "members.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (outputs,) = session.run(None, {given.name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), late.predict(x), rtol=1e-5, atol=1e-5)


def test_a_copy_of_it_is_one() -> None:
    case = Case(family="rank-one")
    _, _, late = run(case, 4)
    x, ensemble = batch_of(case), Ensemble(late)
    twin = copy.deepcopy(ensemble)
    assert torch.equal(twin(x), ensemble(x))
    with torch.no_grad():
        tree_map(lambda tensor: tensor.zero_(), list(twin.parameters()))
    assert not torch.equal(twin(x), ensemble(x))

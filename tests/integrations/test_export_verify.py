"""verify(): what became of the collapsed model, in numbers that a change of the model moves."""

import json

import pytest
import torch
from torch import nn

import latephase
from cases import Case, assert_same, run, tensors
from latephase.export import Agreement, verify

CASE = Case(dtype=torch.float32)


@pytest.fixture(scope="module")
def handed() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A collapsed model, inputs, and what the averaged model returned for them before the collapse."""
    model, _, late = run(CASE, 4)
    ((x, _),) = CASE.batches(1, 7, first=70)
    before = model.eval()(x).detach()
    return late.collapse(), x, before


def test_a_collapsed_model_is_the_original(handed: tuple) -> None:
    model, x, before = handed
    original = CASE.plain(seed=3)
    own, mode = tensors(original), model.training
    report = verify(original, model, (x,), before=before)
    assert_same(tensors(original), own)
    assert original.training
    assert model.training == mode
    assert report.tensors == len(original.state_dict())
    assert (report.missing, report.unexpected, report.shapes, report.dtypes) == ((), (), {}, {})
    assert report.order
    assert report.load is None
    assert report.loaded == Agreement(0.0, before.abs().max().item(), 1.0, 7)
    assert report.collapse == report.loaded
    assert set(report.files) == {"export", "onnx"}
    for written in report.files.values():
        assert written.outputs.largest < 1e-5
        assert written.outputs.predictions == 7
    lines = str(report).splitlines()
    assert lines[0] == f"state dict: {report.tensors} tensors, the same keys in the same order"
    assert lines[3] == "strict load into the original: yes"
    assert lines[-1].startswith("onnx: ")
    assert json.loads(json.dumps(report.to_dict()))["files"]["onnx"]["bytes"] == report.files["onnx"].bytes


def test_what_differs_is_named_with_its_value(handed: tuple) -> None:
    model, x, before = handed
    other = CASE.plain()
    other.fc = nn.Linear(5, 4)
    other.bn1 = nn.BatchNorm2d(4, affine=False)
    other.extra = nn.Identity()
    other.extra.register_buffer("count", torch.zeros(1))
    other.conv1.half()
    report = verify(other, model, (x,), before=before + 0.25, formats=())
    assert report.missing == ("extra.count",)
    assert report.unexpected == ("bn1.weight", "bn1.bias")
    assert report.shapes == {"fc.weight": "(4, 5), (3, 5)", "fc.bias": "(4,), (3,)"}
    assert report.dtypes == {"conv1.weight": "torch.float16, torch.float32"}
    assert report.load is not None
    assert "extra.count" in report.load
    assert report.loaded is None
    assert report.collapse is not None
    assert report.collapse.largest == pytest.approx(0.25)
    assert "keys missing: extra.count; unexpected: bn1.weight, bn1.bias" in str(report)
    assert "fc.weight ((4, 5), (3, 5))" in str(report)


def test_another_order_of_keys_is_told(handed: tuple) -> None:
    model, x, _ = handed
    other = CASE.plain()
    other.conv1, weight = nn.Conv2d(2, 4, 3, padding=1, bias=False), other.bn1.weight
    del other.bn1.weight
    other.bn1.register_parameter("weight", weight)
    report = verify(other, model, (x,), formats=())
    assert not report.order
    assert report.load is None
    assert "in another order" in str(report)


def test_an_exporter_that_gives_up_is_part_of_the_report(handed: tuple) -> None:
    model, x, _ = handed
    with torch.no_grad():
        report = verify(Branching(model), Branching(model), (x,), formats=("export", "safetensors"))
    assert isinstance(report.files["export"], str)
    assert "export cannot hold Branching" in report.files["export"]
    assert report.files["safetensors"].outputs.largest == 0.0
    with pytest.raises(latephase.LatePhaseValueError, match="format: 'tflite'; use one of"):
        verify(CASE.plain(), model, (x,), formats=("tflite",))


class Branching(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if x.sum() > -1e9 else self.inner(-x)


def test_agreement_counts_what_it_says() -> None:
    ours = torch.tensor([[1.0, 3.0], [2.0, 0.0], [float("-inf"), 1.0]])
    theirs = torch.tensor([[1.0, 2.5], [2.0, 2.25], [float("-inf"), 1.0]])
    found = Agreement.of((ours, None), [theirs])
    assert (found.largest, found.predictions) == (2.25, 3)
    assert found.top1 == pytest.approx(2 / 3)
    assert Agreement.of(ours, theirs.where(theirs > 0, torch.nan)).largest == float("inf")
    with pytest.raises(latephase.LatePhaseValueError, match=r"\(3, 2\).*\(2, 2\)"):
        Agreement.of(ours, theirs[:2])

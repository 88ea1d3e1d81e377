"""The collapsed model in every format: what is read back predicts what the plain model does, whatever the family."""

import pickletools
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import latephase
from cases import Case, run
from latephase.export import FORMATS, write
from latephase.export.program import batch_is_dynamic, trace

SLOW = pytest.mark.slow
FAMILIES = [
    replace(case, dtype=torch.float32)
    for case in (
        Case("bn_cnn", "norm+head"),
        Case("bn_cnn", "rank-one"),
        Case("bn_cnn", "hypernetwork"),
        Case("transformer", "norm", "adamw"),
        Case("decoder", "lora", "adamw"),
        Case("lstm", "rank-one"),
    )
]


# What takes seconds is fast for these alone; that the other families' graphs are the plain model's is shown for all.
FAST = {"strict": FAMILIES[:1], "onnx": FAMILIES[:1], "quantised": FAMILIES[:1]}


def crossed(name: str, values: Sequence[str]) -> pytest.MarkDecorator:
    """Every family with every value of another parameter."""
    rows = [
        pytest.param(case, value, id=f"{case}-{value}", marks=() if case in FAST.get(value, FAMILIES) else SLOW)
        for case in FAMILIES
        for value in values
    ]
    return pytest.mark.parametrize(("collapsed", name), rows, indirect=["collapsed"])


@pytest.fixture(scope="module")
def collapsed(request: pytest.FixtureRequest) -> tuple[Case, nn.Module, nn.Module, Tensor]:
    """The row, its collapsed model, a model of the original code with its weights, and inputs."""
    case: Case = request.param
    _, _, late = run(case, 4)
    model = late.collapse()
    plain = case.plain(seed=9)
    plain.load_state_dict(model.state_dict(), strict=True)
    ((x, _),) = case.batches(1, 7, first=70)
    return case, model.eval(), plain.eval(), x


@crossed("way", ["traced", "strict"])
def test_torch_export(collapsed: tuple[Case, nn.Module, nn.Module, Tensor], way: str) -> None:
    """The program is that of the plain model, operator by operator: nothing of the phase is in it."""
    _, model, plain, x = collapsed
    dynamic = batch_is_dynamic((x,))
    program = trace(model, (x[:3],), dynamic, strict=way == "strict")
    for size in (1, 7):
        torch.testing.assert_close(program.module()(x[:size]), plain(x[:size]), rtol=1e-6, atol=1e-6)
    if way == "traced":
        theirs = trace(plain, (x[:3],), dynamic)
        assert [str(n.target) for n in program.graph.nodes] == [str(n.target) for n in theirs.graph.nodes]
        assert program.state_dict.keys() == theirs.state_dict.keys()


@crossed("name", ["safetensors", "export", "onnx", "torchscript", "quantised"])
def test_what_is_read_back_predicts_the_same(
    collapsed: tuple[Case, nn.Module, nn.Module, Tensor], name: str, tmp_path: Path
) -> None:
    case, model, plain, x = collapsed
    path = tmp_path / f"model{FORMATS[name].suffix}"
    written = write(model, (x[:3],), path, name, check=(x,))
    assert (written.path, written.bytes) == (path, path.stat().st_size)
    predict = FORMATS[name].read(path, case.plain(seed=4).eval())
    with torch.no_grad():
        expected, outputs = plain(x), predict(x)
    (found,) = [outputs] if isinstance(outputs, Tensor) else outputs
    difference = (found - expected).abs().max().item()
    assert written.outputs.largest == pytest.approx(difference, abs=1e-7)
    assert written.outputs.scale == pytest.approx(expected.abs().max().item())
    assert written.outputs.predictions == 7
    if name == "quantised":
        assert 1e-7 < difference < 0.05 * expected.abs().max()  # half a step of 1/127 of the largest weight, and more
        assert "of the weights in int8" in written.note
    else:
        assert difference <= (0.0 if name == "safetensors" else 1e-5)
        assert written.outputs.top1 == 1.0


@pytest.mark.parametrize("collapsed", FAMILIES, ids=str, indirect=True)
def test_torchscript_is_that_of_the_original(collapsed: tuple[Case, nn.Module, nn.Module, Tensor]) -> None:
    """Where the original's code is TorchScript, so is the collapsed model's; where it is not, neither is."""
    _, model, plain, _ = collapsed
    scripts = []
    for each in (model, plain):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated", category=FutureWarning)
            warnings.filterwarnings(
                "ignore", message=r"`torch\.jit\.script` is deprecated", category=DeprecationWarning
            )
            try:
                scripts.append(torch.jit.script(each).code)
            except RuntimeError as error:
                scripts.append(type(error))
    assert scripts[0] == scripts[1]


def test_no_file_is_a_pickle_of_classes(tmp_path: Path) -> None:
    """A .pt2 file is JSON and raw bytes, its example inputs plain tensors; TorchScript's data name its own types."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    x = torch.randn(4, 3)
    for name in ("export", "quantised"):
        path = write(model, (x,), tmp_path / f"{name}.pt2", name).path
        with zipfile.ZipFile(path) as archive:
            inner = [each for each in archive.namelist() if each.endswith((".pt", ".pkl"))]
            assert [each.rpartition("/")[2] for each in inner] == ["model.pt"]
            assert "sample_inputs" in inner[0]
            with archive.open(inner[0]) as file:
                torch.load(file, weights_only=True)
            weights = [archive.getinfo(each).file_size for each in archive.namelist() if "/weights/weight_" in each]
            assert sum(weights) < 4 * sum(t.numel() for t in model.state_dict().values()) + 8
    path = write(model, (x,), tmp_path / "script.pt", "torchscript").path
    with zipfile.ZipFile(path) as archive:
        (data,) = [each for each in archive.namelist() if each.endswith("/data.pkl")]
        with archive.open(data) as file:
            imports = {arg for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"}
    assert all(
        each.startswith(("__torch__.", "torch ", "torch._utils ", "collections OrderedDict")) for each in imports
    )


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x, x) if x.sum() > 0 else self.fc(x, -x)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pickle", r"format: 'pickle'; use one of safetensors, export, onnx"),
        ("export", r"format: export cannot hold Deciding \(.+\)"),
        ("onnx", r"format: onnx cannot hold Deciding \(.+\)"),
        ("quantised", r"format: quantised needs nn.Linear layers, of which Deciding has none; use another format"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(name: str, reason: str, tmp_path: Path) -> None:
    model, path = Deciding(), tmp_path / "model.bin"
    path.write_text("what was there before")
    with pytest.raises(latephase.LatePhaseError, match=reason) as caught:
        write(model, (torch.ones(2, 3),), path, name)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]
    with pytest.raises(latephase.LatePhaseValueError, match="args: one sample; a graph for any number"):
        write(nn.Linear(3, 2), (torch.ones(1, 3),), path, "export")
    assert path.read_text() == "what was there before"
    assert model.training


def test_a_model_under_a_phase_is_refused(tmp_path: Path) -> None:
    model, _, late = run(Case(dtype=torch.float32), 2)
    x = torch.randn(3, 2, 6, 6)
    with pytest.raises(latephase.LatePhaseError, match=r"members share this model; collapse\(\) the phase first"):
        write(model, (x,), tmp_path / "model.safetensors", "safetensors")
    with pytest.raises(latephase.LatePhaseError, match="members share"):
        write(nn.Sequential(nn.Identity(), model), (x,), tmp_path / "model.safetensors", "safetensors")
    assert write(late.collapse(), (x,), tmp_path / "model.safetensors", "safetensors").outputs.largest == 0


def test_large_weights_lie_beside_the_onnx_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import latephase.export.onnx

    monkeypatch.setattr(latephase.export.onnx, "_ROOM", 4 * 64 * 64)
    model, x = nn.Linear(64, 64), torch.randn(3, 64)
    written = write(model, (x,), tmp_path / "large.onnx", "onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert written.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert written.note == "weights in large.onnx.data"
    (found,) = FORMATS["onnx"].read(tmp_path / "large.onnx", model)(x)
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["norm+head", "rank-one"])
def test_machine_code(family: str, tmp_path: Path) -> None:
    case = Case(family=family, dtype=torch.float32)
    _, _, late = run(case, 4)
    ((x, _),) = case.batches(1, 7, first=70)
    with late.average():
        expected = late.model.eval()(x)
    written = write(late.collapse(), (x[:3],), tmp_path / "model-aoti.pt2", "aoti", check=(x,))
    assert written.outputs.largest < 1e-5
    found = FORMATS["aoti"].read(tmp_path / "model-aoti.pt2", case.plain())(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["norm", "rank-one"])
def test_save_pretrained(weights: str, tmp_path: Path) -> None:
    """A Hugging Face model is saved by its own method and loaded by its own class, without this library."""
    from transformers import BertConfig, BertForSequenceClassification  # takes its time to import

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    model = BertForSequenceClassification(config)
    late = latephase.LatePhase(model, members=2, weights=[weights])
    optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    late.start()
    tokens, labels = torch.randint(20, (4, 6)), torch.tensor([0, 1, 1, 0])
    for _ in range(4):
        optimizer.zero_grad()
        model(tokens, labels=labels).loss.backward()
        optimizer.step()
    expected = model.eval()(tokens).logits.detach()
    late.collapse().save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens).logits, expected, rtol=1e-5, atol=1e-6)

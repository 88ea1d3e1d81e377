"""`latephase export`: what is written of a run is what was trained, and mistakes are one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from latephase.cli import main
from latephase.experiments.evaluate.subject import load_subject
from latephase.experiments.evaluate.target import find_runs
from latephase.experiments.text import load_corpus
from latephase.export import FORMATS, Ensemble

IMAGES = {
    "data.subset": 48,
    "data.validation": 40,
    "data.test_images": 60,
    "training.epochs": 3,
    "training.batch_size": 6,
    "model.width": 4,
    "late_phase.members": 3,
}
TEXT = {
    "text.length": 4,
    "text.window": 16,
    "text.context": 4,
    "training.batch_size": 3,
    "training.epochs": 1,
    "late_phase.start": 0.6,
    "late_phase.members": 2,
}


def options(values: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "run"
    methods = ["--methods=[base,late-phase,late-phase+swa,deep-ensemble]", "--seeds=1", "--deep_ensemble.networks=2"]
    arguments = ["compare", "digits-noisy", *options(IMAGES), *methods, "--workers=1", f"--output={folder}"]
    assert main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def trained(compared: Path) -> Path:
    return compared / "digits-noisy/seed-0/late-phase"


@pytest.fixture(scope="module", params=["lstm-6", "transformer-1-32"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    source = folder / "short.txt"
    source.write_bytes(bytes(load_corpus().raw[1000:1300].tolist()))
    values = TEXT | {"model.name": request.param, "data.train": source, "method": "late-phase"}
    assert main(["train", "text-small", *options(values), f"--output={folder / 'run'}"]) == 0
    return folder / "run"


def exported(folder: Path, format_name: str, *arguments: str) -> tuple[Path, dict[str, Any]]:
    """The file that the command writes, and what it says of it."""
    before = set(folder.glob("export/*"))
    assert main(["export", str(folder), f"--format={format_name}", *arguments]) == 0
    new = set(folder.glob("export/*")) - before
    (facts,) = [path for path in new if path.suffix == ".json"]
    (path,) = new - {facts}
    return path, json.loads(facts.read_text())


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latephase: error: ")
    assert err.count("\n") == 1
    return err


def test_the_averaged_model_in_onnx(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, facts = exported(trained, "onnx")
    assert path == trained / "export/averaged.onnx"
    subject = load_subject(find_runs(trained, ())[0].runs[0])
    images, _ = next(iter(subject.trajectory.task.test()))
    expected = subject.predictor.logits(images)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (logits,) = session.run(None, {given.name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-5, atol=1e-5)
    outputs = facts["file"]["outputs"]
    assert outputs["largest"] < 1e-5 * max(1.0, outputs["scale"])
    assert (outputs["top1"], outputs["predictions"]) == (1.0, 60)
    assert facts["source"]["largest"] < 1e-5 * max(1.0, outputs["scale"])  # before and after the collapse
    assert facts["verification"]["load"] is None
    assert facts["verification"]["missing"] == facts["verification"]["unexpected"] == []
    mean, std = subject.images.split.train.normalisation()
    assert (facts["mean"], facts["std"]) == (mean.tolist(), std.tolist())
    assert len(facts["classes"]) == 10
    assert facts["inputs"] == [[60, 1, 8, 8]]
    assert facts["file"]["bytes"] == path.stat().st_size
    shown = capsys.readouterr().out
    assert "averaged model of late-phase, seed 0" in shown
    assert "strict load into the original: yes" in shown
    assert f"{path}: {path.stat().st_size:,} bytes" in shown
    assert "the same class in 100.00% of 60" in shown


def test_members_alone_and_together(trained: Path) -> None:
    subject = load_subject(find_runs(trained, ())[0].runs[0])
    images, _ = next(iter(subject.trajectory.task.test()))
    assert subject.late is not None
    expected = subject.late.predict(images)
    path, facts = exported(trained, "export", "--what=ensemble")
    found = torch.export.load(path).module()(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert facts["outputs"] == [[3, 60, 10]]
    assert facts["file"]["note"] == "the members follow one another in the graph"
    path, facts = exported(trained, "export", "--what=ensemble", "--batch=20", f"--output={trained / 'export/20.pt2'}")
    torch.testing.assert_close(torch.export.load(path).module()(images[:20]), expected[:, :20], rtol=1e-5, atol=1e-5)
    assert facts["file"]["note"] == ""
    assert facts["verification"] is None
    assert facts["source"]["largest"] < 1e-5 * max(1.0, facts["source"]["scale"])
    path, facts = exported(trained, "safetensors", "--what=member:1")
    assert path.name == "member-1.safetensors"
    plain = subject.trajectory.fresh_model()
    plain.load_state_dict(load_file(path), strict=True)
    torch.testing.assert_close(plain.eval()(images), expected[1], rtol=1e-5, atol=1e-5)
    path, _ = exported(trained, "safetensors", "--what=ensemble")
    blank = Ensemble.blank(subject.trajectory.fresh_model(), 3, subject.run.recipe.late_phase.weights)
    blank.load_state_dict(load_file(path))
    torch.testing.assert_close(blank(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format_name", ["torchscript", "quantised"])
def test_the_other_formats(trained: Path, format_name: str) -> None:
    path, facts = exported(trained, format_name)
    assert path.name == f"averaged{FORMATS[format_name].suffix}"
    largest, scale = facts["file"]["outputs"]["largest"], facts["file"]["outputs"]["scale"]
    assert largest < (0.05 * scale if format_name == "quantised" else 1e-5 * max(1.0, scale))


def test_one_run_of_a_comparison(compared: Path) -> None:
    setting = compared / "digits-noisy"
    path, _ = exported(setting, "safetensors", "--method=late-phase+swa")
    assert path.name == "late-phase+swa-seed-0-averaged.safetensors"
    stored, ours = load_file(setting / "seed-0/late-phase+swa/model.safetensors"), load_file(path)
    assert list(stored) == list(ours)
    assert all(torch.equal(stored[name], ours[name]) for name in stored)
    path, facts = exported(setting / "seed-0/base", "export")
    assert path.name == "averaged.pt2"
    assert facts["method"] == "base"


def test_text_with_a_state_and_without(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = load_subject(find_runs(text, ())[0].runs[0])
    x, _ = next(iter(subject.trajectory.task.test()))
    recurrent = subject.predictor.model.recurrent
    with torch.no_grad():
        whole, state = subject.predictor.model.eval()(x.tokens)
    # Character by character with the state handed on, or all at once at a size never traced: the same logits.
    if recurrent:
        path, facts = exported(text, "onnx", "--length=1")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        tokens, *states = [given.name for given in session.get_inputs()]
        held, parts = [torch.zeros_like(part).numpy() for part in state], []
        for i in range(x.tokens.shape[1]):
            given = {tokens: x.tokens[:, i : i + 1].numpy(), **dict(zip(states, held, strict=True))}
            logits, *held = session.run(None, given)
            parts.append(torch.from_numpy(logits))
        found = torch.cat(parts, 1)
    else:
        path, facts = exported(text, "export")
        found = torch.export.load(path).module()(x.tokens)[0]
    assert len(facts["inputs"]) == (3 if recurrent else 1)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    path, facts = exported(text, "export", "--what=ensemble")
    logits = torch.export.load(path).module()(x.tokens)[0]
    assert subject.late is not None
    torch.testing.assert_close(logits, subject.late.predict(x.tokens)[0], rtol=1e-5, atol=1e-5)
    assert main(["evaluate", str(text)]) == 2
    assert "is a model of text; latephase evaluate takes classifiers of images" in capsys.readouterr().err
    assert bytes(facts["bytes"]) == bytes(subject.trajectory.task.corpus.vocabulary)


def test_mistakes_are_one_line_and_exit_code_2(
    trained: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "needs a run folder" in fails(capsys)
    assert "needs a --format; there are safetensors, export, onnx" in fails(capsys, trained)
    assert "unknown format 'onx'; did you mean onnx?" in fails(capsys, trained, "--format=onx")
    assert "unknown --what 'ensembel'; did you mean ensemble or" in fails(
        capsys, trained, "--format=onnx", "--what=ensembel"
    )
    assert "there is no run nowhere" in fails(capsys, "nowhere", "--format=onnx")
    assert "--seed" in fails(capsys, trained, "--format=onnx", "--seed=one")
    assert "--model.width cannot be changed" in fails(capsys, trained, "--format=onnx", "--model.width=8")
    (tmp_path / "interrupted").mkdir()
    shutil.copy(compared / "digits-noisy/recipe.yaml", tmp_path / "interrupted")
    assert "interrupted holds no finished run" in fails(capsys, tmp_path / "interrupted", "--format=onnx")
    assert "the members are 0 to 2" in fails(capsys, trained, "--format=onnx", "--what=member:3")
    new = f"--output={tmp_path / 'new.onnx'}"
    assert "--batch 0 is not valid" in fails(capsys, trained, "--format=onnx", "--batch=0")
    assert "compared on 60 test samples; take fewer" in fails(capsys, trained, "--format=onnx", "--batch=61", new)
    assert "--length 3: the graph of small-cnn is not made for one length" in fails(
        capsys, trained, "--format=onnx", "--length=3", new
    )
    taken = tmp_path / "taken.onnx"
    taken.write_text("mine")
    assert "taken.onnx exists; choose another --output" in fails(capsys, trained, "--format=onnx", f"--output={taken}")
    assert taken.read_text() == "mine"
    several = fails(capsys, compared / "digits-noisy", "--format=onnx")
    assert "holds 4 runs (methods base, late-phase, late-phase+swa, deep-ensemble; seeds 0)" in several
    one = compared / "digits-noisy" / "seed-0"
    assert "deep-ensemble predicts with several networks" in fails(capsys, one / "deep-ensemble", "--format=onnx")
    assert "base has no members" in fails(capsys, one / "base", "--format=onnx", "--what=ensemble")
    assert "late-phase+swa has no members" in fails(capsys, one / "late-phase+swa", "--format=onnx", "--what=member:0")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.delitem(__import__("sys").modules, "latephase.export.onnx", raising=False)
    missing = fails(capsys, trained, "--format=onnx", new)
    assert "export needs onnxruntime; install it with: pip install 'latephase[" in missing
    assert not (tmp_path / "new.onnx").exists()


def test_help_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*FORMATS, "--what averaged|ensemble|member:K"))

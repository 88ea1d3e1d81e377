"""The Trainer with the callback equals the plain loop with LatePhase, on the minibatches that the Trainer took."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers_runs import (
    DECAY,
    EPOCH,
    EPOCHS,
    RATE,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    Recorder,
    Trainer,
    TrainerCallback,
    arguments,
    callback,
    furthest,
    image_model,
    images,
    plain_loop,
    state,
    text_model,
    texts,
    trainer,
    vision_transformer,
)

import latephase

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

STEPS = EPOCH * EPOCHS


def compare(model, late, folder: Path, *, trained: dict | None = None, plain: dict | None = None) -> float:
    """The largest difference of the collapsed models: the Trainer's, and the plain loop's."""
    made, recorder = trainer(model(), [late], folder, **(trained or {}))
    made.train()
    assert late.late.phase == "collapsed"
    options = {"start": EPOCH, "members": 3, "weights": ("norm", "head"), **(plain or {})}
    parts = made.args.gradient_accumulation_steps
    train = recorder.batches[: STEPS * parts]
    batches = [train[i : i + parts] for i in range(0, len(train), parts)]
    phase = plain_loop(model(), batches, **options)
    assert phase.rounds * phase.members + phase.turn == len(batches) - options["start"]
    return furthest(state(made.model), state(phase.collapse()))


@pytest.mark.parametrize("model", [text_model, image_model, vision_transformer])
def test_the_trainer_equals_the_plain_loop(model, tmp_path: Path) -> None:
    """With clipping, warm-up and AdamW as the Trainer makes it."""
    assert compare(model, callback(), tmp_path) <= 1e-12


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"weights": "rank-one"}, EPOCH),
        ({"weights": ["norm", "lora"]}, EPOCH),
        ({"start": 0, "noise": 0.1, "seed": 3}, 0),
        ({"start": 7, "base_gradient": "mean", "optimizer_state": "reset"}, 7),
        ({"start": 0.5, "members": 1}, 7),
    ],
    ids=["rank-one", "lora", "noise", "mean", "one-member"],
)
def test_every_option_reaches_the_phase(options: dict, start: int, tmp_path: Path) -> None:
    plain = {**options, "start": start}
    assert compare(vision_transformer, callback(**options), tmp_path, plain=plain) <= 1e-12


@pytest.mark.parametrize(("model", "data", "divide"), [(text_model, texts, 1), (vision_transformer, images, 2)])
def test_gradient_accumulation(model, data, divide: int, tmp_path: Path) -> None:
    """Two minibatches of two a step.

    The vision transformer's loss is the mean over both. BERT takes whatever keywords its forward is given, so that the
    Trainer leaves dividing the loss to it, in vain: with the callback or without it, the losses are added.
    """
    trained = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "data": data(20)}
    assert compare(model, callback(), tmp_path, trained=trained, plain={"divide": divide}) <= 1e-12


def test_gathered_in_place(tmp_path: Path) -> None:
    trained = {"max_grad_norm": 0.0}
    assert compare(image_model, callback(accumulate="in_place"), tmp_path, trained=trained, plain={"clip": 0}) <= 1e-12


def test_bfloat16(tmp_path: Path) -> None:
    """The same kernels in the same order: bit for bit."""

    def model() -> nn.Module:
        return vision_transformer(dtype=torch.float32)

    assert compare(model, callback(), tmp_path, trained={"bf16": True}, plain={"bf16": True}) == 0


def test_activation_checkpointing(tmp_path: Path) -> None:
    trained = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert compare(vision_transformer, callback(), tmp_path, trained=trained) <= 1e-12


def test_compiled_once(tmp_path: Path) -> None:
    """torch_compile: the members take turns in one graph, which also trained before the start."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained = {"torch_compile": True, "torch_compile_backend": "eager"}
    assert compare(vision_transformer, callback(), tmp_path, trained=trained) <= 1e-12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)


@pytest.mark.parametrize("pace", ["cosine", "epochs"])
def test_schedulers_of_ones_own(pace: str, tmp_path: Path) -> None:
    """A rate a step, and one that falls at the end of an epoch; the optimizer and its scheduler are the user's."""

    def schedule(optimizer):
        if pace == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.3 ** (step // EPOCH))

    model = image_model()
    optimizer = sgd(model)
    late = callback(weights=["norm", "rank-one"])
    made, recorder = trainer(model, [late], tmp_path, optimizers=(optimizer, schedule(optimizer)))
    made.train()
    batches = [[batch] for batch in recorder.batches[:STEPS]]
    phase = plain_loop(
        image_model(), batches, EPOCH, make=sgd, schedule=schedule, members=3, weights=["norm", "rank-one"]
    )
    assert furthest(state(made.model), state(phase.collapse())) <= 1e-12


def test_a_plateau_sees_the_averaged_models_loss(tmp_path: Path) -> None:
    late = callback()
    trained = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"factor": 0.2, "patience": 0, "threshold": 0.2},
        "warmup_steps": 0,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
    }
    model = image_model()
    made, recorder = trainer(model, [late], tmp_path, **trained)
    made.train()
    losses = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry]
    # Every third step an evaluation asks for the first four samples in a minibatch, and for two more.
    known = torch.stack([sample["pixel_values"] for sample in images()[:6]])
    labels = torch.tensor([sample["labels"] for sample in images()[:6]])
    evaluated = [b for b in recorder.batches if torch.equal(b["pixel_values"], known[:4]) or len(b["labels"]) == 2]
    assert len(evaluated) == 2 * len(losses)
    batches = [[b] for b in recorder.batches if not any(b is other for other in evaluated)]
    assert len(batches) == STEPS
    ours: list[float] = []
    rates: list[float] = []
    plateau = None

    def schedule(optimizer):
        nonlocal plateau
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, patience=0, threshold=0.2)

    def after(step: int, model: nn.Module, optimizer) -> None:
        if step % 3 == 0:
            with torch.no_grad():
                ours.append(float(model.eval()(pixel_values=known, labels=labels).loss))
            plateau.step(ours[-1])
            rates.append(optimizer.param_groups[0]["lr"])

    phase = plain_loop(
        image_model(), batches, EPOCH, schedule=schedule, after=after, members=3, weights=("norm", "head")
    )
    assert ours == pytest.approx(losses, abs=1e-6)
    assert len(set(rates)) > 1
    assert furthest(state(made.model), state(phase.collapse())) <= 1e-12


class Spy(TrainerCallback):
    """Looks at the model whenever an evaluation has ended."""

    def __init__(self, late) -> None:
        self.late, self.average = late, []

    def on_prediction_step(self, args, state_, control, model=None, **_) -> None:
        average = self.late.late.averaged_state_dict()
        shown = dict(model.named_parameters()) | dict(model.named_buffers())
        self.average.append(all(torch.equal(shown[name], average[name]) for name in average))


def test_evaluation_and_checkpoints_show_the_average(tmp_path: Path) -> None:
    """lucidrains/ema-pytorch#39, "which state dict do I use?": whatever the Trainer writes is the model to deploy."""
    late = callback()
    spy = Spy(late)
    made, _ = trainer(
        text_model(), [late, spy], tmp_path, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=7
    )
    made.train()
    assert len(spy.average) >= 6
    assert all(spy.average)
    saved = load_file(tmp_path / "checkpoint-7" / "model.safetensors")
    members = torch.load(tmp_path / "checkpoint-7" / "latephase.pt", weights_only=True)["late"]
    assert members["turn"] == 2
    name = "bert.embeddings.LayerNorm.bias"
    assert torch.equal(saved[name], members["values"][name].mean(0)) or torch.allclose(
        saved[name], members["values"][name].mean(0), rtol=0, atol=1e-15
    )
    plain = text_model()
    assert list(plain.state_dict()) == list(made.model.state_dict())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-7", dtype=torch.float64)
    assert type(again) is type(plain)
    assert not any("latephase" in entry.name for entry in tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    ("model", "weights"),
    [(text_model, ["rank-one"]), (image_model, ["norm", "head"]), (vision_transformer, ["norm", "rank-one"])],
)
def test_save_pretrained_is_loaded_by_the_original_class(model, weights: list[str], tmp_path: Path) -> None:
    """Before the collapse and after it, with equal outputs; huggingface/peft#1388: in numbers."""
    late = callback(weights=weights)
    inner = model()
    inputs = {"input_ids": torch.tensor([texts()[0]["input_ids"]])}
    if model is not text_model:
        inputs = {"pixel_values": images()[0]["pixel_values"][None]}
    middle = {}

    class Save(TrainerCallback):
        def on_step_end(self, args, state_, control, model=None, **_) -> None:
            if state_.global_step == 9:
                model.save_pretrained(tmp_path / "late")
                with late.late.average(), torch.no_grad():
                    middle["outputs"] = model.eval()(**inputs).logits
                model.train()

    made, _ = trainer(inner, [late, Save()], tmp_path)
    made.train()
    made.save_model(tmp_path / "final")
    with torch.no_grad():
        expected = {"late": middle["outputs"], "final": inner.eval()(**inputs).logits}
    auto = AutoModelForSequenceClassification if model is text_model else AutoModelForImageClassification
    for folder, outputs in expected.items():
        loaded, report = auto.from_pretrained(tmp_path / folder, dtype=torch.float64, output_loading_info=True)
        assert type(loaded) is type(model())
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            difference = (loaded.eval()(**inputs).logits - outputs).abs().max()
        assert difference <= 1e-12


def test_the_best_model_is_the_best_of_the_averages(tmp_path: Path) -> None:
    late = callback()
    made, _ = trainer(
        image_model(),
        [late],
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.15,
        lr_scheduler_type="constant",
    )
    made.train()
    best = Path(made.state.best_model_checkpoint)
    assert 5 < int(best.name.split("-")[1]) < STEPS
    saved = load_file(best / "model.safetensors")
    assert furthest(state(made.model), {name: saved[name] for name in state(made.model)}) == 0
    losses = {e["step"]: e["eval_loss"] for e in made.state.log_history if "eval_loss" in e}
    assert made.state.best_metric == min(losses.values())
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, rel=1e-6)


def test_swa_is_the_mean_of_the_averaged_models(tmp_path: Path) -> None:
    """Of two moments, with BatchNorm's running statistics recomputed on the training data."""
    late = callback(swa=8, swa_every=4)
    made, recorder = trainer(image_model(), [late], tmp_path)
    made.train()
    taken: dict[int, dict] = {}

    def after(step: int, model: nn.Module, _) -> None:
        if step >= 8 and step % 4 == 0:
            taken[step] = state(model)

    batches = [[batch] for batch in recorder.batches[:STEPS]]
    plain_loop(image_model(), batches, EPOCH, after=after, members=3, weights=("norm", "head")).collapse()
    assert list(taken) == [8, 12]
    expected = image_model()
    expected.load_state_dict({n: ((taken[8][n] + taken[12][n]) / 2).to(taken[8][n].dtype) for n in taken[8]})
    # The callback goes through the training data once more, for the statistics.
    assert len(recorder.batches) == STEPS + EPOCH
    latephase.recompute_statistics(expected, recorder.batches[STEPS:])
    assert furthest(state(made.model), state(expected)) <= 1e-12


def test_added_to_a_trainer_that_exists(tmp_path: Path) -> None:
    """Attached when training begins: after the optimizer was given, before it is wrapped or after."""
    model = text_model()
    late = callback()
    made, recorder = trainer(model, [], tmp_path)
    made.add_callback(late)
    made.train()
    batches = [[batch] for batch in recorder.batches[:STEPS]]
    phase = plain_loop(text_model(), batches, EPOCH, members=3, weights=("norm", "head"))
    assert furthest(state(made.model), state(phase.collapse())) <= 1e-12


def test_train_again_is_a_late_phase_again(tmp_path: Path) -> None:
    late = callback(start=0)
    made, _ = trainer(text_model(), [late], tmp_path, max_steps=4)
    made.train()
    first = late.late
    made.train()
    assert first is not late.late
    assert late.late.phase == "collapsed"
    assert not any("latephase" in type(hook).__module__ for hook in made.model._forward_hooks.values())


def test_a_model_init_makes_the_model_that_trains(tmp_path: Path) -> None:
    late = callback(weights=["norm", "rank-one"])
    recorder = Recorder()
    made = Trainer(
        model_init=lambda: text_model(),
        args=arguments(tmp_path),
        train_dataset=texts(),
        data_collator=recorder,
        callbacks=[late],
    )
    made.train()
    batches = [[batch] for batch in recorder.batches[:STEPS]]
    phase = plain_loop(text_model(), batches, EPOCH, members=3, weights=["norm", "rank-one"])
    assert furthest(state(made.model), state(phase.collapse())) <= 1e-12


def test_the_start_that_is_left_to_the_logged_losses(tmp_path: Path) -> None:
    """The signal has each logged loss for as many minibatches as it is the mean of."""
    late = callback(start="auto", members=2)
    made, _ = trainer(
        text_model(), [late], tmp_path, max_steps=24, logging_strategy="steps", logging_steps=2, learning_rate=0.05
    )
    made.train()
    signal = latephase.StartSignal(2, 24)
    fed = [e for e in made.state.log_history if "loss" in e]
    for entry in fed:
        for _ in range(2):
            signal.update(entry["loss"], entry["learning_rate"])
    assert signal.started is not None
    assert late.beginning.signal.started == signal.started
    assert late.late.rounds == (24 - signal.started) // 2

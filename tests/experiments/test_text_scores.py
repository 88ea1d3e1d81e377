"""Bits per character against loops in float64, and the text that a model writes."""

import math

import pytest
import torch
from torch import Tensor, nn

from latephase import LatePhase
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import CharLSTM, CharTransformer
from latephase.experiments.text import Corpus, Text, as_text, generate, held_out, mean_of, predict_with, score

CPU = torch.device("cpu")
N, V = 83, 9


@pytest.fixture
def text() -> Text:
    raw = torch.randint(V, (N,), dtype=torch.uint8)
    return Text(raw, torch.arange(256).clamp(max=V - 1))


def lstm(seed: int = 0) -> CharLSTM:
    torch.manual_seed(seed)
    return CharLSTM(V, 12).double().eval()


def slow_bits(models: list[nn.Module], tokens: Tensor) -> list[float]:
    """Bits of each character but the first, one at a time, from the mean probability of the models."""
    states: list = [None] * len(models)
    bits = []
    for i in range(len(tokens) - 1):
        p = 0.0
        for k, model in enumerate(models):
            with torch.no_grad():
                logits, states[k] = model(tokens[None, i : i + 1], states[k])
            weights = [math.exp(z) for z in logits[0, 0].tolist()]
            p += weights[int(tokens[i + 1])] / math.fsum(weights) / len(models)
        bits.append(-math.log2(p))
    return bits


@pytest.mark.parametrize("length", [1, 7, 16, 82, 200])
def test_bits_per_character_are_exact(text: Text, length: int) -> None:
    model = lstm()
    scores = score(predict_with(model), held_out(text, 1, length, CPU))
    expected = math.fsum(slow_bits([model], text.tokens(slice(None)))) / (N - 1)
    assert scores["bpc"] == pytest.approx(expected, rel=1e-12)
    assert scores["nll"] == pytest.approx(expected * math.log(2), rel=1e-12)


def test_an_ensemble_averages_probabilities_and_each_member_has_its_own_state(text: Text) -> None:
    models = [lstm(seed) for seed in (1, 2, 3)]
    with torch.no_grad():
        for model in models:
            model.head.weight.mul_(8)
    scores = score(mean_of([predict_with(model) for model in models]), held_out(text, 1, 10, CPU))
    expected = math.fsum(slow_bits(models, text.tokens(slice(None)))) / (N - 1)
    assert scores["bpc"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [2, 5, 40])
def test_the_number_of_streams_has_next_to_no_influence(text: Text, batch: int) -> None:
    model = lstm()
    whole = score(predict_with(model), held_out(text, 1, 10, CPU))
    streams = score(predict_with(model), held_out(text, batch, 10, CPU, warm_up=30))
    for key in ("bpc", "nll", "brier"):
        assert streams[key] == pytest.approx(whole[key], rel=1e-6)
    assert streams["accuracy"] == whole["accuracy"]
    cold = score(predict_with(model), held_out(text, batch, 10, CPU, warm_up=0))
    assert abs(cold["bpc"] - whole["bpc"]) > 1e-6


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_windows_score_the_same_for_any_number_of_them_at_once(text: Text, batch: int) -> None:
    torch.manual_seed(0)
    model = CharTransformer(V, 1, 32).double().eval()
    scores = score(predict_with(model), held_out(text, batch, 10, CPU, carried=False, warm_up=4))
    tokens, bits = text.tokens(slice(None)), 0.0
    for target in range(1, N):
        # The first window predicts 1 to 10; each of the next six more; the last one ends with the text.
        window = 0 if target <= 10 else min((target - 11) // 6 + 1, -(-(N - 1 - 10) // 6))
        begin = min(window * 6, N - 1 - 10)
        with torch.no_grad():
            logits, _ = model(tokens[None, begin:target])
        bits -= float(logits[0, -1].log_softmax(0)[tokens[target]]) / math.log(2)
    assert scores["bpc"] == pytest.approx(bits / (N - 1), rel=1e-9)


def test_accuracy_counts_the_likeliest_character() -> None:
    text = Text(torch.tensor([0, 1, 0, 1, 1], dtype=torch.uint8), torch.arange(256))

    def other(tokens: Tensor, state: object) -> tuple[Tensor, object]:
        return torch.stack([tokens, 1 - tokens], dim=-1).double().log_softmax(dim=-1), state

    scores = score(other, held_out(text, 2, 2, CPU))
    assert scores["accuracy"] == 0.75
    p = 1 / (1 + math.exp(-1))
    assert scores["bpc"] == pytest.approx(-(3 * math.log2(p) + math.log2(1 - p)) / 4)


@pytest.fixture
def corpus() -> Corpus:
    content = b"abc de\xc3\xa9\n" * 20
    return Corpus(torch.frombuffer(bytearray(content), dtype=torch.uint8), "a test")


def test_an_lstm_writes_what_a_slow_loop_writes(corpus: Corpus) -> None:
    model = CharLSTM(len(corpus.vocabulary), 8)
    written = generate(model, corpus, b"abc ", 15, temperature=0)
    text = b"abc "
    for _ in range(15):
        with torch.no_grad():
            logits, _ = model(corpus.encode(text)[None])
        text += corpus.decode(logits[0, -1:].argmax(dim=-1))
    assert b"abc " + written == text
    assert model.training


def test_a_transformer_sees_a_window_that_slides(corpus: Corpus) -> None:
    model = CharTransformer(len(corpus.vocabulary), 1, 32)
    nn.init.normal_(model.embedding.weight)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    written = generate(model, corpus, b"abc de", 7, window=4, seed=3)
    assert len(written) == 7
    whole = corpus.encode(b"abc de" + written)
    for i, tokens in enumerate(seen):
        assert torch.equal(tokens, whole[2 + i : 6 + i])


def test_a_seed_writes_the_same_and_temperature_changes_what_is_likely(corpus: Corpus) -> None:
    model = CharLSTM(len(corpus.vocabulary), 8)
    with torch.no_grad():
        model.head.bias[3] = 4.0
    first = generate(model, corpus, b"a", 200, seed=1)
    before = torch.get_rng_state()
    assert generate(model, corpus, b"a", 200, seed=1) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(model, corpus, b"a", 200, seed=2) != first
    often = bytes([corpus.vocabulary[3]])
    counts = [generate(model, corpus, b"a", 200, temperature=t).count(often) for t in (0.0, 1e-300, 1.0, 100.0)]
    assert counts[0] == counts[1] == 200
    assert 200 > counts[2] > 120
    assert counts[3] < 60


def test_under_a_late_phase_the_averaged_model_writes(corpus: Corpus) -> None:
    model = CharTransformer(len(corpus.vocabulary), 1, 32)
    late = LatePhase(model, members=3, weights="norm")
    late.start()
    before = generate(model, corpus, b"abc", 5, temperature=0)
    assert model.training
    plain = CharTransformer(len(corpus.vocabulary), 1, 32)
    plain.load_state_dict(late.averaged_state_dict())
    assert generate(plain, corpus, b"abc", 5, temperature=0) == before


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        (b"", {}, "an empty prompt has nothing to go on from"),
        (b"abX", {}, "byte 0x58 at offset 2 is none of the 9 bytes that a test is made of"),
        (b"a", {"temperature": -1.0}, "temperature = -1.0 is not valid"),
        (b"a", {"temperature": math.nan}, "temperature = nan is not valid"),
        (b"a", {"window": 0}, "window = 0: nothing can be written"),
    ],
)
def test_what_nobody_can_write_is_refused(prompt: bytes, changes: dict, message: str, corpus: Corpus) -> None:
    with pytest.raises(ExperimentError, match=message):
        generate(CharLSTM(len(corpus.vocabulary), 4), corpus, prompt, 3, **changes)


def test_bytes_are_shown_without_doing_anything() -> None:
    assert as_text(b"caf\xc3\xa9 \xff [b]\n\t\x00\x7f\r") == "café \ufffd [b]\n␉␀␡␍"
    assert as_text("a\u202eb\u2028c\u0085".encode()) == "a<U+202E>b<U+2028>c<U+0085>"

"""Bits per character against loops in float64, and the text that a model writes."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from latephase import LatePhase
from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import CharLSTM, CharTransformer
from latephase.experiments.predictor import Predictor
from latephase.experiments.recipe import load_recipe
from latephase.experiments.text import Corpus, as_text, generate
from latephase.experiments.text_task import TextTask

CPU = torch.device("cpu")
V = 9


def task(n: int, window: int, context: int) -> TextTask:
    """A corpus of V characters whose test text has n of them."""
    raw = torch.randint(V, (20 * n,), dtype=torch.uint8)
    raw[:V] = torch.arange(V)
    recipe: Recipe = load_recipe("text-small", [f"--text.window={window}", f"--text.context={context}"])
    return TextTask(recipe, Corpus(raw, "a test"), 0, CPU)


def bits(models: list[nn.Module], tokens: list[int], window: int, context: int) -> list[float]:
    """Bits of each character but the first, one at a time, from the mean probability of the models in float64.

    A character is predicted from all before it in its window; the windows overlap by the context, and the last one
    ends with the text.
    """
    last = len(tokens) - 1
    window = min(window, last)
    found = []
    begin, end = 0, window
    for target in range(1, last + 1):
        if target > end:
            end = min(end + window - context, last)
            begin = end - window
        p = 0.0
        for model in models:
            with torch.no_grad():
                logits, _ = model(torch.tensor([tokens[begin:target]]))
            weights = [math.exp(z) for z in logits[0, -1].tolist()]
            p += weights[tokens[target]] / math.fsum(weights) / len(models)
        found.append(-math.log2(p))
    return found


def models(kind: str, count: int) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = (CharLSTM(V, 6) if kind == "lstm" else CharTransformer(V, 1, 32)).double().eval()
        with torch.no_grad():
            model.head.weight.mul_(8)
        made.append(model)
    return made


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize(("window", "context"), [(4, 0), (10, 4), (9, 8), (400, 64)])
def test_bits_per_character_are_exact(kind: str, window: int, context: int) -> None:
    text = task(53, window, context)
    model = models(kind, 1)
    slow = bits(model, text.corpus.test.tokens(slice(None)).tolist(), window, context)
    scores = text.scores(Predictor(model[0], task=text).score(text.test()))
    assert scores["bpc"] == pytest.approx(math.fsum(slow) / 52, rel=1e-12)
    assert scores["nll"] == pytest.approx(math.fsum(slow) / 52 * math.log(2), rel=1e-12)


def test_an_ensemble_averages_probabilities() -> None:
    text, three = task(53, 10, 4), models("lstm", 3)

    def members(x: object) -> Tensor:
        with torch.no_grad():
            return torch.stack([text.predict(model, x) for model in three])

    slow = bits(three, text.corpus.test.tokens(slice(None)).tolist(), 10, 4)
    scores = text.scores(Predictor(three[0], members, ensemble=True, task=text).score(text.test()))
    assert scores["bpc"] == pytest.approx(math.fsum(slow) / 52, rel=1e-12)


def test_with_enough_context_the_window_has_next_to_no_influence() -> None:
    model = models("lstm", 1)[0]

    def score(window: int, context: int) -> float:
        torch.manual_seed(7)
        text = task(83, window, context)
        return text.scores(Predictor(model, task=text).score(text.test()))["bpc"]

    whole = score(500, 0)
    assert abs(score(10, 0) - whole) > 1e-4
    assert score(40, 30) == pytest.approx(whole, rel=1e-4)


def test_accuracy_counts_the_likeliest_character() -> None:
    text = task(41, 8, 4)

    class Successor(nn.Module):
        def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
            return nn.functional.one_hot((tokens + 1) % V, V).double(), None

    tokens = text.corpus.test.tokens(slice(None)).tolist()
    hits = sum((a + 1) % V == b for a, b in itertools.pairwise(tokens))
    scores = text.scores(Predictor(Successor(), task=text).score(text.test()))
    assert scores["accuracy"] == hits / 40
    p = math.e / (math.e + V - 1)
    expected = -(hits * math.log2(p) + (40 - hits) * math.log2((1 - p) / (V - 1))) / 40
    assert scores["bpc"] == pytest.approx(expected)


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

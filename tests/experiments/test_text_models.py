"""The LSTM and the transformer: sizes, carried state, causality, positions; and their names in recipes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latephase.experiments.config import Model
from latephase.experiments.errors import ExperimentError
from latephase.experiments.models import CharLSTM, CharTransformer, build_text_model


def size_of(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_papers_lstm_has_about_1_56_million_parameters() -> None:
    assert size_of(CharLSTM(205, 500)) == 1_558_730
    # Embedding V V, input and recurrent matrices 4 N (V + N) with two biases, head V N + V.
    assert size_of(CharLSTM(11, 7)) == 11 * 11 + 4 * 7 * (11 + 7 + 2) + 11 * 7 + 11
    assert CharLSTM(11, 7, embedding=3).embedding.weight.shape == (11, 3)


def test_the_two_transformers_have_about_0_4_and_10_million_parameters() -> None:
    small, large = CharTransformer(205, 3, 96), CharTransformer(205, 6, 384)
    tied = CharTransformer(205, 3, 96, tied=True)
    assert size_of(small) == 371_808
    assert size_of(large) == 10_779_264
    assert size_of(small) - size_of(tied) == 205 * 96
    assert not [name for name, _ in large.named_parameters() if "bias" in name]
    assert not [name for name, _ in large.named_buffers() if name in large.state_dict()]


@pytest.mark.parametrize("pieces", [[5, 5, 5, 5], [1, 19], [7, 1, 1, 11]])
def test_carrying_the_state_equals_one_long_pass(pieces: list[int]) -> None:
    model = CharLSTM(9, 6).double()
    tokens = torch.randint(9, (3, 20))
    whole, last = model(tokens)
    state, parts = None, []
    for piece in tokens.split(pieces, dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    for ours, theirs in zip(state, last, strict=True):
        assert ours.shape == (3, 6)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    # The state is batch first: rows may be chosen from it.
    alone, _ = model(tokens[1:2, :5], tuple(s[1:2] for s in last))
    beside, _ = model(tokens[:, :5], last)
    torch.testing.assert_close(alone, beside[1:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: CharLSTM(9, 6), lambda: CharTransformer(9, 2, 32)])
def test_a_prediction_depends_on_all_characters_before_it_and_on_none_after(make) -> None:
    model = make().double()
    tokens = torch.randint(9, (1, 12))
    before, _ = model(tokens)
    for i in range(12):
        changed = tokens.clone()
        changed[0, i] = (changed[0, i] + 1) % 9
        differs = (model(changed)[0] - before).abs().amax(dim=-1)[0]
        assert bool((differs[:i] == 0).all())
        assert bool((differs[i:] > 0).all())


def test_the_transformer_sees_distances_and_not_places() -> None:
    """Attention is softmax(q.k) with rotated q and k: their product depends on the distance of the two alone."""
    model = CharTransformer(9, 1, 64).double()
    attention = model.blocks[0].attention
    seen = {}
    for shift in (0, 5):
        angles = (torch.arange(6, dtype=torch.float64) + shift)[:, None] * model.frequencies
        x = torch.randn(1, 6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        seen[shift] = attention(x, (angles.cos(), angles.sin()))
    torch.testing.assert_close(seen[0], seen[5], rtol=0, atol=1e-12)
    swapped = torch.stack([torch.tensor([3, 4, 3, 3]), torch.tensor([4, 3, 3, 3])])
    logits, _ = model(swapped)
    assert not torch.allclose(logits[0, -1], logits[1, -1])


def test_the_transformer_equals_attention_written_out() -> None:
    model = CharTransformer(7, 1, 64).double()
    tokens = torch.randint(7, (1, 5))
    block = model.blocks[0]
    embedded = model.embedding(tokens)[0]

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        pairs = torch.complex(x[:16], x[16:])
        angles = position * 10_000.0 ** (-torch.arange(16, dtype=torch.float32).double() / 16)
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag])

    x = norm(embedded)
    q, k, v = (x @ getattr(block.attention, f"{name}_proj").weight.T for name in "qkv")
    rows = []
    for i in range(5):
        heads = []
        for head in (slice(0, 32), slice(32, 64)):
            scores = torch.stack([turned(q[i, head], i) @ turned(k[j, head], j) for j in range(i + 1)]) / 32**0.5
            heads.append(scores.softmax(dim=0) @ v[: i + 1, head])
        rows.append(torch.cat(heads))
    y = embedded + torch.stack(rows) @ block.attention.o_proj.weight.T
    forward = block.feed_forward
    gate, up = (norm(y) @ w.weight.T for w in (forward.gate_proj, forward.up_proj))
    y = y + (gate * gate.sigmoid() * up) @ forward.down_proj.weight.T
    expected = norm(y) @ model.head.weight.T
    torch.testing.assert_close(model(tokens)[0][0], expected, rtol=0, atol=1e-7)


def test_weights_depend_on_the_seed_alone_and_leave_the_generators_as_they_were() -> None:
    for name in ("lstm-8", "transformer-1-32"):
        torch.manual_seed(5)
        drawn = torch.rand(1)
        torch.manual_seed(5)
        first = build_text_model(Model(name), 13, seed=1).state_dict()
        assert torch.equal(torch.rand(1), drawn)
        again, other = (build_text_model(Model(name), 13, seed=s).state_dict() for s in (1, 2))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_model_starts_from_weights_of_its_own_kind(tmp_path: Path) -> None:
    save_file(build_text_model(Model("lstm-8"), 13, seed=1).state_dict(), tmp_path / "model.safetensors")
    config = Model("lstm-8", weights=str(tmp_path / "model.safetensors"))
    there, here = (build_text_model(c, 13, seed=s).state_dict() for c, s in ((Model("lstm-8"), 1), (config, 2)))
    assert all(torch.equal(there[key], here[key]) for key in there)
    with pytest.raises(ExperimentError, match="holds the weights of another model"):
        build_text_model(Model("lstm-9", weights=config.weights), 13, seed=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Model("lstm-0"), "model.name = lstm-0: an LSTM has at least 1 unit"),
        (Model("transformer-0-32"), "at least 1 block"),
        (Model("transformer-2-48"), r"the width is a multiple of 32, the dimensions of a head; not 48"),
        (Model("transformer-2-288"), "the width is a multiple of 64"),
        (Model("lstm-5OO"), r"unknown model for text 'lstm-5OO'; did you mean lstm-500"),
        (Model("wrn-28-10"), "unknown model for text 'wrn-28-10'; there are lstm-500, transformer-3-96"),
        (Model("lstm-5", pretrained=True), "model.pretrained = True needs a model of torchvision, not lstm-5"),
    ],
)
def test_what_is_no_model_for_text_is_refused(config: Model, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        build_text_model(config, 13, seed=0)

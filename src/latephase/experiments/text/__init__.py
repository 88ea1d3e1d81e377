"""Text: corpora of bytes, the minibatches made of them, scores and samples."""

from latephase.experiments.text.corpus import Corpus, Text, load_corpus
from latephase.experiments.text.held_out import held_out
from latephase.experiments.text.sample import as_text, generate
from latephase.experiments.text.score import mean_of, predict_with, score
from latephase.experiments.text.streams import Streams, Windows

__all__ = [
    "Corpus",
    "Streams",
    "Text",
    "Windows",
    "as_text",
    "generate",
    "held_out",
    "load_corpus",
    "mean_of",
    "predict_with",
    "score",
]

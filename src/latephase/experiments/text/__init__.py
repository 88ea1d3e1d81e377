"""Text: corpora of bytes, the minibatches made of them, and samples."""

from latephase.experiments.text.corpus import Corpus, Text, load_corpus
from latephase.experiments.text.held_out import UNSCORED, held_out
from latephase.experiments.text.sample import as_text, generate
from latephase.experiments.text.streams import Streams, Windows, minibatches_per_epoch

__all__ = [
    "UNSCORED",
    "Corpus",
    "Streams",
    "Text",
    "Windows",
    "as_text",
    "generate",
    "held_out",
    "load_corpus",
    "minibatches_per_epoch",
]

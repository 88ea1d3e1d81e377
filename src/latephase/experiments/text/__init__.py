"""Text: corpora of bytes, and the minibatches made of them."""

from latephase.experiments.text.corpus import Corpus, Text, load_corpus
from latephase.experiments.text.held_out import held_out
from latephase.experiments.text.streams import Streams, Windows

__all__ = ["Corpus", "Streams", "Text", "Windows", "held_out", "load_corpus"]

"""A character-level LSTM, the paper's model on enwik8."""

from __future__ import annotations

from torch import Tensor, nn

LSTMState = tuple[Tensor, Tensor]


class CharLSTM(nn.Module):
    """An embedding of each character, one LSTM layer, and a linear head.

    The paper states 500 units and about 1.56M parameters, and no size of the embedding: one as large as the
    vocabulary, 205 on enwik8, makes 1,558,730 (a size of 200 would make 1.55M, characters without an embedding 1.52M).

    A dropout layer of rate 0, which does nothing until it is set, stands before the head.

    Args:
        vocabulary: Number of characters.
        units: Units of the LSTM.
        embedding: Size of the embedding; None takes the size of the vocabulary.

    Attributes:
        recurrent: True: the state carries on what was read before.

    Example:
        >>> sum(p.numel() for p in CharLSTM(vocabulary=205, units=500).parameters())
        1558730
    """

    recurrent = True

    def __init__(self, vocabulary: int, units: int, embedding: int | None = None) -> None:
        super().__init__()
        if units < 1:
            raise ValueError(f"an LSTM has at least 1 unit, not {units}")
        size = vocabulary if embedding is None else embedding
        self.embedding = nn.Embedding(vocabulary, size)
        self.lstm = nn.LSTM(size, units, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(units, vocabulary)

    def forward(self, tokens: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Predict the character after each one.

        Args:
            tokens: int64, (N, length).
            state: Hidden and cell state to go on from, (N, units) each; None begins at zero.

        Returns:
            Logits, (N, length, vocabulary), and the state after the last character, (N, units) each.
        """
        # nn.LSTM has a dimension of layers in front, also with batch_first.
        layers = None if state is None else (state[0][None], state[1][None])
        y, (hidden, cell) = self.lstm(self.embedding(tokens), layers)
        return self.head(self.dropout(y)), (hidden[0], cell[0])

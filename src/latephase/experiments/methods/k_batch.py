"""Control: minibatches K times as large from T0 on."""

from __future__ import annotations

from latephase.experiments.methods.accumulating import Accumulating


class KBatch(Accumulating):
    """All weights step once for every K minibatches, on the sum of their gradients."""

    name = "k-batch"
    label = "K-batch"
    summary = "plain SGD, one step on the summed gradients of K minibatches from T0 on"

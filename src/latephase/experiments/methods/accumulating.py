"""What the controls K-batch and twin share: one step for every K minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from latephase.experiments.methods.method import Method

if TYPE_CHECKING:
    from latephase.experiments.trajectory import Trajectory


class Accumulating(Method):
    """From T0 on the gradients of K minibatches are summed before the optimizer steps once.

    A last round that is not full does not step, as in late-phase training.
    """

    _turn = 0
    _since: int | None = None
    _model: Any = None

    @property
    def turn(self) -> int | None:
        """The place in the round, once there are rounds."""
        return None if self._since is None else self._turn

    @property
    def first_round(self) -> int | None:
        """The minibatch at which the sums began."""
        return self._since

    @property
    def start(self) -> float:
        """T0."""
        return self.t0

    def attach(self, trajectory: Trajectory) -> None:
        """Note whose gradients are summed, and start from none."""
        self._model = trajectory.model
        trajectory.optimizer.zero_grad()
        self._since = trajectory.start

    def step(self, trajectory: Trajectory, x: Tensor, y: Tensor) -> Tensor:
        """Add a minibatch's gradients; step after the K-th."""
        sums = [p.grad for p in trajectory.model.parameters()]
        if trajectory.recipe.training.clip is not None:
            # A norm is one minibatch's, as it is where every minibatch is a step.
            trajectory.optimizer.zero_grad()
        loss = trajectory.backward(trajectory.loss(x, y))
        if trajectory.recipe.training.clip is not None:
            trajectory.clip()
            for p, earlier in zip(trajectory.model.parameters(), sums, strict=True):
                if p.grad is not None and earlier is not None:
                    p.grad += earlier
        self._turn += 1
        if self._turn == self.recipe.late_phase.members:
            self.combine()
            trajectory.optimizer.step()
            trajectory.optimizer.zero_grad()
            self._turn = 0
        return loss

    def combine(self) -> None:
        """Turn the sums of K gradients into the gradients to step with; the sums themselves by default."""

    def state_dict(self) -> dict[str, Any]:
        """The place in the round and the sums so far."""
        sums = {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        return {"turn": self._turn, "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the round where it stood."""
        self._turn = state["turn"]
        for name, p in self._model.named_parameters():
            p.grad = state["sums"][name].to(p).clone() if name in state["sums"] else None

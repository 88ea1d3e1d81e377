"""The library's two exceptions."""


class LatePhaseError(RuntimeError):
    """A call at a time when it cannot work: `start()` twice, a step of a collapsed phase, a backward too late."""


class LatePhaseValueError(LatePhaseError, ValueError):
    """An argument that cannot work: no members, weights that match nothing, a checkpoint of another model."""

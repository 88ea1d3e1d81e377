"""The library's two exceptions."""


class LatePhaseError(RuntimeError):
    """A call at a time when it cannot work: `start()` twice, a step of a collapsed phase, a backward after the member changed."""


class LatePhaseValueError(LatePhaseError, ValueError):
    """An argument that cannot work: fewer than one member, weights that match nothing, a checkpoint of another model."""

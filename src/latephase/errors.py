"""The library's exceptions."""


class LatePhaseError(RuntimeError):
    """A call at a time when it cannot work: `start()` twice, a step of a collapsed phase, a backward too late."""


class LatePhaseValueError(LatePhaseError, ValueError):
    """An argument that cannot work: no members, weights that match nothing, a checkpoint of another model."""


class DamagedFileError(LatePhaseError):
    """A file is not what was written; nothing was taken from it."""


class ForeignFileError(DamagedFileError):
    """A file is whole and none of ours: it would run code or spend memory; nothing was taken from it."""

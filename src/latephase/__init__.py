"""Late-phase weights for any PyTorch model."""

from ._version import __version__
from .errors import LatePhaseError, LatePhaseValueError
from .families import Family, Full, Head, Hypernetwork, LoRA, Normalization, Parameters, RankOne
from .phase import LatePhase
from .start_signal import StartSignal
from .statistics import recompute_statistics

__all__ = [
    "Family",
    "Full",
    "Head",
    "Hypernetwork",
    "LatePhase",
    "LatePhaseError",
    "LatePhaseValueError",
    "LoRA",
    "Normalization",
    "Parameters",
    "RankOne",
    "StartSignal",
    "__version__",
    "recompute_statistics",
]

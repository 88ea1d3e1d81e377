"""Late-phase weights for any PyTorch model."""

from ._version import __version__
from .errors import DamagedFileError, ForeignFileError, LatePhaseError, LatePhaseValueError
from .families import Family, Full, Head, Hypernetwork, LoRA, Normalization, Parameters, RankOne
from .phase import LatePhase
from .signal_to_noise import gradient_statistics
from .start_signal import StartSignal
from .statistics import recompute_statistics
from .whole_round import Round

__all__ = [
    "DamagedFileError",
    "Family",
    "ForeignFileError",
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
    "Round",
    "StartSignal",
    "__version__",
    "gradient_statistics",
    "recompute_statistics",
]

"""Hand-over: the collapsed model, its members and their ensemble in the formats that deployment tools take.

Importing this package needs torch alone: each format imports its own library (the extra `export`) when it is
used.
"""

from latephase.export.ensemble import Ensemble
from latephase.export.files import Written, write
from latephase.export.formats import FORMATS, Format
from latephase.export.outputs import Agreement
from latephase.export.verify import Verification, verify

__all__ = ["FORMATS", "Agreement", "Ensemble", "Format", "Verification", "Written", "verify", "write"]

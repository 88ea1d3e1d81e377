"""`python -m latephase` is the command `latephase`."""

from __future__ import annotations

import sys

from latephase.cli import main

if __name__ == "__main__":
    sys.exit(main())

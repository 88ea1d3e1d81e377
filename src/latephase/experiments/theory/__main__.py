"""`python -m latephase.experiments.theory` is the command `latephase nqp`."""

import sys

from latephase.experiments.theory.command import main

if __name__ == "__main__":
    sys.exit(main())

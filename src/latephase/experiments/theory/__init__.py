"""Figures, tables and the page of the theory: the command `latephase nqp`."""

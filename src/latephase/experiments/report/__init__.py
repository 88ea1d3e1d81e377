"""The report of a run folder, as a page and in the terminal."""

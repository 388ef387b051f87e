"""One file per verb: its options and its help."""

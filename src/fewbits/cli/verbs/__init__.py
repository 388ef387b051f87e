"""One file per verb, with its options and help."""

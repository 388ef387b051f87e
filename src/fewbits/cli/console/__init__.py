"""Console output: outcomes, errors and progress."""

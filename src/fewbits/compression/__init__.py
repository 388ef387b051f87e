"""Compressing a network: the pipeline, budgets, what one layer costs, and the result."""

"""Analysis of forward passes: chains of layers, and dependence of row order on values."""

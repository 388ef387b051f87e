"""Levels: uniform grids, codebooks, powers of two, quantizers with gradients, ranges."""

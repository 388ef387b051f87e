"""Levels: uniform grids, codebooks, powers of two, differentiable quantizers, clipping ranges."""

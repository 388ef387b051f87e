"""Loops that visit one value at a time, compiled by numba."""

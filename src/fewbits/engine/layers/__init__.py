"""Layers as matrices: layer kinds, targets, and the interface of methods."""

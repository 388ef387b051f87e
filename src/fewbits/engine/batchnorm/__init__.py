"""Batch normalization: folded, unfolded, re-estimated, frozen, made compact."""

"""Batch normalization: folding, unfolding, re-estimation, freezing, merging."""

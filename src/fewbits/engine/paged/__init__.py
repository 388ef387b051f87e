"""Weights that stay on disk, as mapped checkpoints or coded, and are read when they are used."""

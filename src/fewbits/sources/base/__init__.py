"""Shared parts of all sources: syntax of names, registries, datasets, size limits."""

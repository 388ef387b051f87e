"""Exact differences between two state dicts, in few bytes."""

"""Recipes and plans: which method compresses which tensor, from Python or YAML."""

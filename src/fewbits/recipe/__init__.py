"""Recipes and plans: which method codes which tensor, from Python or YAML."""

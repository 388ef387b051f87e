"""Losses, and distillation from a teacher that is trained along."""

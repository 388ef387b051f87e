"""Losses, and distillation from a teacher that is trained together with the student."""

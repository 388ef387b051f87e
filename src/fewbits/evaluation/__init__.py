"""Accuracy and loss of a network, with and without noise on its weights."""

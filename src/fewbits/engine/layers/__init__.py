"""Layers as matrices: kinds of layers, what can be coded, what a method sees and returns."""

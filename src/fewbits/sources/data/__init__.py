"""Datasets by name: digits, arrays, image folders, IDX files."""

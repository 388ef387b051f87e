"""Rounding: path following, second-order feedback, projections, shaped errors."""

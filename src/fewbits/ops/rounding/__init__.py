"""Rounding: path following, second-order feedback, projections, noise shaping."""

"""Context mixing: adaptive binary decisions, logistic mixing; the fewest bytes."""

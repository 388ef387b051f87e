"""Context mixing: adaptive binary decisions with logistic mixing, for the fewest bytes."""

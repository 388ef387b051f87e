"""The tuner, which applies a training method to a network, from prepare to finish."""

"""The tuner: a training method at work on a network, from prepare to finish."""

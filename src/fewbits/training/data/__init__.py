"""Training batches: their order, augmentation, and the share of each process."""

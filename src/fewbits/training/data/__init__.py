"""Training batches: order, augmentation, the part of each process."""

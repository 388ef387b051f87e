"""The training loop, on Lightning Fabric; a loop of one's own drives the same tuner."""

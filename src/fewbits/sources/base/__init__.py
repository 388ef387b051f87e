"""What sources share: the syntax of names, registries, datasets, limits."""

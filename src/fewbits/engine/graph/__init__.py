"""What a forward pass does with values, found without tracing the whole graph."""

"""Quantized activations: where they are, the hooks that quantize them, integer arithmetic."""

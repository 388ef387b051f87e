"""Quantized activations: their sites, the hooks that quantize them, integer arithmetic."""

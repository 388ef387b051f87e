"""LowBit: low-bit weights and activations (Zhuang et al. 2021)."""

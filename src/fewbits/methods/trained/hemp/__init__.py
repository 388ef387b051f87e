"""HEMP: high-order entropy minimization (Tartaglione et al. 2021)."""

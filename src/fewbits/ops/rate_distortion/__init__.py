"""Rate and distortion: bit allocation, cheapest levels, entropy as a loss."""

"""Rate and distortion: bit allocation, rate-aware levels, differentiable entropy."""

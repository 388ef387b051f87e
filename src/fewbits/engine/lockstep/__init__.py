"""The lockstep: suspended forward passes of the float and the quantized network side by side."""

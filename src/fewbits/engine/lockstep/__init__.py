"""The float network and the quantized one side by side, in suspended forward passes."""

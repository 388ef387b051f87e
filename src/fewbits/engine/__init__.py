"""The only code that walks ``nn.Module``: targets, layer views, lockstep calibration, folding."""

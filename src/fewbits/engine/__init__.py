"""The only place that walks ``nn.Module``: targets, layer views, lockstep calibration, folding."""

"""Shared by the tests of exports: torch's table of operators is made once, not at every export."""

from __future__ import annotations

import copy
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def _operators_once():
    """Have ``torch.onnx.export`` begin with a copy of one table.

    It reads the source of 500 functions of onnxscript to make it: half the time that the export of
    a small network takes. Versions of torch that make it elsewhere just take longer.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    made = cache(ONNXRegistry.from_torchlib)

    def copied(**settings):
        table = copy.copy(made(**settings))
        table.functions = {name: list(found) for name, found in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield

from __future__ import annotations

import ctypes
import sys

import pytest

from fewbits.engine.memory import map_large_tensors


def test_a_system_without_it_is_no_error(monkeypatch):
    def refuse(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert map_large_tensors() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of Linux's glibc")
def test_it_is_set_on_glibc():
    assert map_large_tensors() is hasattr(ctypes.CDLL(None), "mallopt")

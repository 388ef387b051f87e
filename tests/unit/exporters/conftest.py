"""Shared by the tests of exports: torch's table of operators is made once, not at every export."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _operators_once(operators_once):
    """For every test in this folder."""

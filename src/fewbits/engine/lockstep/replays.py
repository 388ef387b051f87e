"""Calls of a module that computes inputs of its weights itself, kept until its turn comes."""

from __future__ import annotations

from dataclasses import dataclass

from ..layers.recurrent import Replay

__all__ = ["KeptCall"]


@dataclass(frozen=True)
class KeptCall:
    """Sequences of one call, the same ones in both networks.

    Attributes:
        batch: number of the calibration batch.
        call: number of the call within it.
        reference: the sequences in the float network.
        quantized: the sequences in the quantized network.
    """

    batch: int
    call: int
    reference: Replay
    quantized: Replay

"""The Python side in one page: train, compress, save, load, judge.

Run: python compress_digits.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import fewbits
from fewbits.evaluation.metrics import evaluate
from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier


def main(folder: Path) -> None:
    """Compress one network at several widths; print accuracy next to bytes."""
    data = load_data("digits")
    model = train_classifier(load_model("builtin:digits-cnn").module, data, epochs=8)
    print(f"float32: {evaluate(model, data.batches('test'))}")
    for bits in (4, 3, 2):
        calibration = data.batches("calibration", limit=512, seed=0)
        coded = fewbits.compress(model, fewbits.GPFQ(bits=bits), calibration)
        path = folder / f"digits-{bits}bit.fewbits"
        size = coded.save(path)
        # The file is all that is needed: a network of the same architecture takes its values.
        restored = fewbits.load(path, into=load_model("builtin:digits-cnn").module)
        found = evaluate(restored, data.batches("test"))
        print(f"{bits} bits: {found}; {size:,} bytes, {coded.compression_ratio:.1f}x smaller")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

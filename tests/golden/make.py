"""Writes the golden files that are missing, and their hashes.

    python tests/golden/make.py [NAME ...]

Files that are there are kept, as a version that was released needs; those that are named are
written again.
"""

import hashlib
import sys
from pathlib import Path

from examples import EXAMPLES
from fewbits.container import encode

HERE = Path(__file__).parent
SUMS = "SHA256SUMS"


def main(again):
    for name, (contents, effort) in EXAMPLES.items():
        path = HERE / f"{name}.fewbits"
        if path.exists() and name not in again:
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(contents(), effort, threads=1))
        print(f"{name}: {path.stat().st_size} bytes")
    for folder in {(HERE / name).parent for name in EXAMPLES}:
        files = sorted(folder.glob("*.fewbits"))
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
        (folder / SUMS).write_text("\n".join(sums) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1:])

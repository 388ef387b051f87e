"""How many files of the package four things that people do enter.

``python tests/helpers/journeys.py`` prints, for compressing, saving, loading, and training from
``prepare`` to ``finish``, how many files have a function that was called, and how many modules were
imported, each in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SETUP = """
import json, sys, tempfile, threading, warnings
from pathlib import Path
import torch, fewbits
warnings.simplefilter("ignore")
package = str(Path(fewbits.__file__).parent)
file = Path(sys.argv[1])
entered = set()

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10),
    ).eval()

def batches():
    return [torch.randn(16, 1, 8, 8) for _ in range(2)]

def watch(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith(package):
        entered.add(frame.f_code.co_filename)
"""
COMPRESS = "fewbits.compress(network(), fewbits.GPFQ(bits=4), calibration=batches())"
# name -> (what is done before and not counted, what is counted)
JOURNEYS = {
    "compress": ("", COMPRESS),
    "save": (f"coded = {COMPRESS}", "coded.save(file)"),
    "load": ("", "fewbits.load(file, into=network())"),
    "prepare..finish": (
        "",
        """
    net = network()
    tuner = fewbits.prepare(net, fewbits.HEMP(levels=9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for inputs in batches():
        loss = net(inputs).square().mean() + tuner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tuner.step()
    tuner.finish()
""",
    ),
}
# Walked once before it is watched: what runs at import is not entered by anybody.
WALK = """
{before}
def walk():
    {counted}

walk()
modules = [name for name in sys.modules if name.split(".")[0] == "fewbits"]
threading.setprofile(watch)
sys.setprofile(watch)
walk()
sys.setprofile(None)
threading.setprofile(None)
print(json.dumps({{"files entered": len(entered), "modules imported": len(modules)}}))
"""


def journey(name: str, file: Path) -> dict[str, int]:
    """Walk one journey in a fresh interpreter; `file` is where the network is saved or read."""
    before, counted = JOURNEYS[name]
    body = SETUP + WALK.format(before=before, counted=counted.strip())
    run = subprocess.run(
        [sys.executable, "-c", body, str(file)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def journeys(folder: Path) -> dict[str, dict[str, int]]:
    """Walk them all; "load" reads what "save" wrote."""
    order = ("compress", "save", "load", "prepare..finish")
    return {name: journey(name, folder / "net.fewbits") for name in order}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(journeys(Path(folder)), indent=1))


if __name__ == "__main__":
    main()

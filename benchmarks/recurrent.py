"""Recurrent networks at 4 bits: all weights calibrated, or only those whose inputs calls show.

    python benchmarks/recurrent.py            # ten minutes
    python benchmarks/recurrent.py --quick    # every network once, on little data

"first" rounds what a layer computes itself (recurrent, upper and projection weights) to the nearest
level, as fewbits did before it replayed recurrent layers; "all" calibrates every weight. The error
is ``||y - y~|| / ||y||`` over the held-out outputs: embeddings of length 1, or logits.

- Resemblyzer's encoder of voices. There is no audio here: frames are synthetic (packaged.py).
- A bidirectional GRU of two layers that reads MNIST digits row by row.
- An LSTM of two layers with projections that predicts characters of Tiny Shakespeare.

The last two are trained here for a minute each. Calibration and evaluation never share a sample.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fewbits
from fewbits.engine.layers.targets import survey
from fewbits.recipe.plan import fallback_of
from images import CACHE, data_folder, mnist
from packaged import AbsentError, voice_encoder, voice_frames
from record import blank_copy, write

METHODS = (fewbits.GPFQ(bits=4), fewbits.GPTQ(bits=4), fewbits.Qronos(bits=4))
ROUNDED = (fewbits.Nearest(bits=4), fewbits.Nearest(bits=8))


class Digits(nn.Module):
    """Classifies images (n, 28, 28), row by row, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(28, 96, 2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(192, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 10)."""
        return self.last(self.gru(images)[0].mean(1))


class Characters(nn.Module):
    """Predicts the next of 65 characters (n, steps)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(65, 48)
        self.lstm = nn.LSTM(48, 192, 2, proj_size=96, batch_first=True)
        self.last = nn.Linear(96, 65)

    def forward(self, text: Tensor) -> Tensor:
        """Return logits (n, steps, 65)."""
        return self.last(self.lstm(self.table(text))[0])


def _trained(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _, (inputs, labels) in zip(range(steps), batches, strict=False):
        loss = functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _voices(kind: str, count: int) -> tuple[nn.Module, list[Tensor], Tensor]:
    calibration = list(voice_frames(kind, count, seed=0).split(32))
    return voice_encoder(), calibration, voice_frames(kind, count, seed=1)


def _digits(count: int, steps: int) -> tuple[nn.Module, list[Tensor], Tensor]:
    torch.manual_seed(0)
    (images, labels), (held, _) = mnist("train"), mnist("test")
    images, held = (x.reshape(-1, 28, 28) / 255 for x in (images, held))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            picks = torch.randint(len(images), (64,))
            yield images[picks], labels[picks]

    model = _trained(Digits(), batches(), steps)
    return model, list(images[: 8 * count].split(128)), held[: 8 * count]


def _characters(count: int, steps: int) -> tuple[nn.Module, list[Tensor], Tensor]:
    torch.manual_seed(0)
    text = (data_folder("text") / "tinyshakespeare.txt").read_text(encoding="utf-8")
    index = {character: place for place, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[character] for character in text])
    train, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            first = torch.randint(len(train) - 65, (32, 1)) + torch.arange(65)
            yield train[first][:, :-1], train[first][:, 1:]

    model = _trained(Characters(), batches(), steps)
    length = 96
    calibration = train[: count * length].reshape(-1, length)
    return model, list(calibration.split(32)), held[: count * length].reshape(-1, length)


NETWORKS: dict[str, Callable[[int, int], tuple[nn.Module, list[Tensor], Tensor]]] = {
    "voice encoder, mel-like": lambda count, _: _voices("mel-like", count),
    "voice encoder, noise": lambda count, _: _voices("noise", count),
    "bidirectional GRU, MNIST": _digits,
    "LSTM with projections, Shakespeare": _characters,
}


def _recipe(model: nn.Module, method: Any, calibrated: str) -> fewbits.Recipe:
    rules = [fewbits.Rule("*", method)]
    if calibrated == "first":
        inner = [t.name for t in survey(model).targets if t.view.inner is not None]
        rules += [fewbits.Rule(name, fallback_of(method)) for name in inner]
    return fewbits.Recipe(tuple(rules))


@torch.no_grad()
def _row(
    named: str, case: tuple[nn.Module, list[Tensor], Tensor], method: Any, calibrated: str
) -> dict[str, Any]:
    model, calibration, held = case
    start = time.process_time()
    recipe = _recipe(model, method, calibrated)
    coded = fewbits.compress(model, recipe, calibration=calibration)
    seconds = time.process_time() - start
    changed = blank_copy(model)
    coded.load_into(changed)
    wanted, found = model(held), changed.eval()(held)
    row = {
        "network": named,
        "method": method.name,
        "bits": method.bits,
        "calibrated": calibrated,
        "relative_error": float((found - wanted).norm() / wanted.norm()),
        "file_bytes": coded.size_report().file_bytes,
        "compress_cpu_seconds": seconds,
    }
    print(
        f"{named:36} {method.name:8} {method.bits} bits, {calibrated:5}: "
        f"error {row['relative_error']:.4f}, {row['file_bytes']:,} bytes, {seconds:.0f} CPU s",
        flush=True,
    )
    return row


@torch.no_grad()
def _input_noise(case: tuple[nn.Module, list[Tensor], Tensor], share: float) -> float:
    """Relative error of the output of the float network if its inputs change by ``share``."""
    model, _, held = case
    moved = held + share * held.std() * torch.randn(
        held.shape, generator=torch.Generator().manual_seed(2)
    )
    wanted = model(held)
    return float((model(moved) - wanted).norm() / wanted.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="little data, GPFQ alone")
    options = parser.parse_args()
    count, steps = (16, 20) if options.quick else (64, 400)
    rows: list[dict[str, Any]] = []
    moved: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for named in options.networks:
        try:
            case = NETWORKS[named](count, steps)
        except AbsentError as error:
            skipped[named] = str(error)
            print(f"{named}: left out: {error}", flush=True)
            continue
        if case[2].is_floating_point():
            moved[named] = _input_noise(case, 0.01)
        rows += [_row(named, case, method, "none") for method in ROUNDED]
        for method in METHODS[:1] if options.quick else METHODS:
            rows += [_row(named, case, method, calibrated) for calibrated in ("first", "all")]
    whole = not (options.quick or skipped) and options.networks == list(NETWORKS)
    write(
        "recurrent" if whole else "recurrent_explored",
        folder=None if whole else CACHE,
        model="Resemblyzer voice encoder; GRU and LSTM with projections, trained here",
        data="synthetic frames (seed 0 calibrates, 1 evaluates); MNIST; Tiny Shakespeare",
        samples=count,
        training_steps=steps,
        output_error_if_inputs_change_by_a_hundredth=moved,
        skipped=skipped,
        measured=rows,
    )


if __name__ == "__main__":
    main()

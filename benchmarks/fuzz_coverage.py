"""A fuzzer guided by coverage: inputs that reach new code are kept and changed again (libFuzzer).

    pip install atheris
    python benchmarks/fuzz_coverage.py [--minutes 20] [--seed 0] [--targets load,inspect]

The same targets and bounds as `fuzz_cost.py`. Files of our own are changed before they get their
checksums and lengths, so that these are never what stops a reader. One process for each target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Modules of kernels: numba compiles no instrumented code, so coverage does not see inside them.
KERNELS = ("bitcoder", "numbers", "rans.lanes", "mix.flags", "mix.mixer", "mix.walk")
COMPILED = tuple(f"fewbits.coding.{name}" for name in KERNELS)

OWN = ("inspect", "load", "load_tensor")  # files with checksums
TARGETS = (*OWN, "recipe", "trace", "run", "checkpoint", "weights")
MOST = 10_000  # bytes of an input
HANG = 60  # seconds
ALIKE = 40  # characters of a reason: one failure of each is kept


def one(name: str, seconds: int, seed: int, report: Path) -> None:
    """Fuzz one target; what came out is in ``report`` at any time."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["fewbits"], exclude=list(COMPILED)):
        from fuzz_cost import bounds  # noqa: PLC0415
        from fuzz_genes import packed, sealed, unpacked  # noqa: PLC0415
        from fuzz_targets import TARGETS as KNOWN  # noqa: PLC0415
        from fuzz_targets import judge  # noqa: PLC0415

    target = KNOWN[name]
    render = unpacked if name in OWN else sealed if name == "checkpoint" else bytes
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, gene in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(packed(gene))
    told: dict[str, Any] = {"target": name, "cases": 0, "read": 0, "refused": 0, "failures": []}
    told["seconds"] = {"value": 0.0, "input_bytes": 0}
    state = {"said": time.monotonic()}

    def try_one(given: bytes) -> None:
        data = render(given)
        begin, wrong = time.process_time(), ""
        try:
            told[judge(target, data, folder)] += 1
        except BaseException as error:  # a panic of a library is no Exception
            wrong = f"{type(error).__name__}: {str(error)[:300]}"
        spent = time.process_time() - begin
        # Counting lines takes several times as long as the lines: only what is far beyond counts.
        if not wrong and spent > 4 * bounds(len(data))[0]:
            wrong = f"{spent:.2f} CPU seconds, under instrumentation, for {len(data)} bytes"
        told["cases"] += 1
        if spent > told["seconds"]["value"]:
            told["seconds"] = {"value": round(spent, 4), "input_bytes": len(data)}
        if wrong and all(wrong[:ALIKE] != reason[:ALIKE] for reason in told["failures"]):
            told["failures"].append(wrong)
            state["said"] = 0.0
            (report.parent / f"{name}-coverage-{len(told['failures'])}.bin").write_bytes(data)
        if time.monotonic() > state["said"] + 1:
            state["said"] = time.monotonic()
            report.write_text(json.dumps(told))

    options = [f"-max_total_time={seconds}", f"-max_len={MOST}", f"-seed={seed + 1}"]
    options += [f"-timeout={HANG}", "-rss_limit_mb=4096", "-print_final_stats=1"]
    options += [f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
    atheris.Fuzz()


def run(name: str, seconds: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fuzz one target in a process of its own, and return what it told."""
    report = folder / f"{name}.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--seed", str(seed), "--report", str(report)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds + 600,
    )
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {"cases": 0}
    found = {"target": name, "failures": [], **found}
    if done.returncode:
        found["failures"].append(f"ended with {done.returncode}: {done.stderr[-600:]}")
    covered = [line for line in done.stderr.splitlines() if " cov: " in line]
    found["edges"] = int(covered[-1].split(" cov: ")[1].split()[0]) if covered else 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--one", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.seconds, args.seed, args.report)
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        atheris = version("atheris")
    except PackageNotFoundError:
        sys.exit("this benchmark needs atheris: pip install atheris")
    from images import CACHE  # noqa: PLC0415
    from record import RESULTS, write  # noqa: PLC0415

    folder = CACHE / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    names = args.targets.split(",")
    told = []
    for name in names:
        told.append(run(name, max(1, int(60 * args.minutes / len(names))), args.seed, folder))
        print(json.dumps(told[-1]), flush=True)
    write(
        "fuzz_coverage",
        model="none, the readers of files",
        data="golden files, small files of every kind, recipes, traces, runs, checkpoints",
        folder=RESULTS if vars(args) == vars(parser.parse_args([])) else CACHE,
        atheris=atheris,
        seed=args.seed,
        minutes=args.minutes,
        input_bytes=MOST,
        targets=told,
    )
    sys.exit(1 if any(row["failures"] for row in told) else 0)


if __name__ == "__main__":
    main()

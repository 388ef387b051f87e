"""Print the markdown tables of the documentation from the records in results/.

python benchmarks/summary.py [resnet20_cifar10 mnist_mlp speed fuzz]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from summary_coding import coding, coding_large, coding_sources
from summary_compared import imagenet, language_model, sentences
from summary_curves import budgets, rate_accuracy, transform_arms
from summary_lowbit import (
    brevitas_qat,
    lowbit_cifar100,
    lowbit_digits,
    lowbit_resnet,
    lowbit_resnet8,
)
from summary_pwfn import pwfn_clustering, pwfn_forms, pwfn_resnet
from summary_running import (
    forward_ratios,
    loading,
    memory,
    onnx_nbits,
    onnx_processors,
    onnx_w8a8,
    recurrent,
    resume,
)
from summary_training import (
    hemp_form,
    hemp_mnist,
    hemp_options,
    hemp_resnet,
    hemp_starts,
    hemp_starts_cifar,
    step_cost,
)
from summary_transform import (
    transform_baselines,
    transform_basis_bits,
    transform_forms,
    transform_metric,
    transform_retraining,
    transform_steps,
)
from summary_trellis import column_steps, many_rates, trellis_networks
from tables import table

OLD_FORMAT = "File bytes and coding times are those of format 1."
RESULTS = Path(__file__).resolve().parent / "results"


def _origin(record: dict[str, Any]) -> str:
    where = record["environment"]
    commit = (where["commit"] or "no commit")[:10] + "+" * bool(where["uncommitted_changes"])
    told = (
        f"`{record['command']}`. Model: {record['model']}. Data: {record['data']}. "
        f"fewbits {where['fewbits']} ({commit}), torch {where['torch']}, {where['cpu']}."
    )
    return told if "format" in where else f"{told} {OLD_FORMAT}"


def _verdict(row: dict[str, Any]) -> str:
    if "target" not in row:
        return ""
    accuracy, size = row["target"]["accuracy_at_least"], row["target"]["bytes_at_most"]
    met = "met" if row["accuracy_met"] and row["bytes_met"] else "missed"
    return f"{met}: {accuracy}% in {size:,} bytes"


def resnet20_cifar10(record: dict[str, Any]) -> str:
    """Accuracy and bytes: mean over seeds, with their range."""
    rows = [
        (
            row["method"],
            str(row["bits"]),
            f"{row['accuracy_mean']:.2f} ({row['accuracy_min']:.2f} to {row['accuracy_max']:.2f})",
            f"{row['file_bytes_mean']:,.0f}",
            f"{row['cpu_seconds_mean']:.0f}",
            _verdict(row),
        )
        for row in record["summary"]
    ]
    head = ("method", "bits", "top-1 % (range over seeds)", "file bytes", "CPU seconds", "target")
    return f"Float32: {record['float_accuracy']['test']:.2f}%.\n\n{table(head, rows)}"


def gpfq_width(record: dict[str, Any]) -> str:
    """Error by the number of inputs, and the slope of its logarithm."""
    errors: dict[str, dict[int, str]] = {}
    for row in record["measured"]:
        errors.setdefault(row["case"], {})[row["width"]] = f"{row['error_mean']:.3f}"
    widths = sorted({width for found in errors.values() for width in found})
    rows = [
        (row["case"], f"{row['slope']:.2f}", *(errors[row["case"]].get(w, "") for w in widths))
        for row in record["summary"]
    ]
    return table(("method", "slope", *(f"{width:,} inputs" for width in widths)), rows)


def mnist_mlp(record: dict[str, Any]) -> str:
    """Test accuracy at every radius, then the choices on validation images."""
    sweeps: dict[str, dict[float, dict[str, Any]]] = {}
    for run in record["runs"]:
        if "clip" in run["settings"]:
            sweeps.setdefault(run["method"], {})[run["settings"]["clip"]] = run
    clips = sorted({clip for sweep in sweeps.values() for clip in sweep})
    rows = [
        (name, *(f"{sweep[clip]['accuracy']['test']:.2f}" for clip in clips))
        for name, sweep in sweeps.items()
    ]
    chosen = [
        (
            name,
            str(best["settings"].get("clip", "")),
            f"{best['test']:.2f}",
            f"{best['file_bytes']:,}",
        )
        for name, best in record["selected_on_validation"].items()
    ]
    checks = [(name, "yes" if met else "no") for name, met in record["checks"].items()]
    return "\n\n".join(
        [
            f"Float32: {record['float_accuracy']['test']:.2f}%.",
            table(("C", *(f"{clip:g}" for clip in clips)), rows),
            table(("chosen on validation images", "C", "test top-1 %", "file bytes"), chosen),
            table(("published finding", "holds here"), checks),
        ]
    )


def speed(record: dict[str, Any]) -> str:
    """Cost in float passes, and memory against the number of images."""
    rows = [
        (
            f"{row['calibration_images']:,}",
            f"{row['max_live_mib']:,}",
            f"{row['inputs_mb']:.0f}",
            f"{row['compress']['cpu_seconds']:.1f}",
            f"{row['float_passes_cpu']:.1f}",
            f"{row['rss_growth_mb']:.0f}",
            f"{row['rss_peak_mb']:.0f}",
        )
        for row in record["measured"]
    ]
    head = (
        "images",
        "memory bound MiB",
        "inputs MB",
        "CPU s",
        "float passes",
        "growth MB",
        "peak MB",
    )
    peer = record["peer"]
    low, high = peer["float_passes_cpu"]
    return (
        f"{table(head, rows)}\n\n{peer['tool']}: {low} to {high} float passes ({peer['source']})."
    )


def kernel_speed(record: dict[str, Any]) -> str:
    """Seconds of a kernel over seconds of a matrix product with as many operations."""
    sizes = list(dict.fromkeys((row["neurons"], row["columns"]) for row in record["measured"]))
    ratios = {(r["kernel"], (r["neurons"], r["columns"])): r["ratio"] for r in record["measured"]}
    kernels = dict.fromkeys(row["kernel"] for row in record["measured"])
    rows = [(name, *(f"{ratios[name, size]:.1f}" for size in sizes)) for name in kernels]
    return table(("time over a GEMM", *(f"{n} x {columns}" for n, columns in sizes)), rows)


def calibration_rows(record: dict[str, Any]) -> str:
    """Divergence on held-out training images, by rows and by setting."""
    rows = [
        (
            str(row["bits"]),
            row["case"],
            f"{row['divergence_mean']:.4f}",
            f"{min(row['divergence']):.4f} to {max(row['divergence']):.4f}",
            f"{row['file_bytes_mean']:,.0f}",
            f"{row['cpu_seconds_mean']:.1f}",
        )
        for row in record["measured"]
    ]
    head = ("bits", "case", "divergence, nats", "range over seeds", "file bytes", "CPU s")
    return table(head, rows)


def fuzz(record: dict[str, Any]) -> str:
    """Outcomes of the mutated files by mode."""
    head = ("mode", "files", "refused", "same contents", "other contents")
    counted = ("cases", "refused", "same", "different")
    rows = [(r["mode"], *(f"{r[key]:,}" for key in counted)) for r in record["modes"]]
    rows.append(("all", *(f"{sum(r[key] for r in record['modes']):,}" for key in counted)))
    slowest, peak, limits = record["slowest"], record["peak"], record["limits"]
    return (
        f"{table(head, rows)}\n\n"
        f"{record['cases']:,} files in {record['wall_seconds'] / 60:.1f} minutes, from "
        f"{len(record['seeds'])} valid ones, seed {record['seed']}. "
        f"Failures (another error, a crash, a hang, or out of memory): "
        f"**{len(record['failures'])}**. Slowest file: {slowest['seconds']:.2f} s "
        f"(limit {limits['seconds_per_case']} s). Peak resident memory: "
        f"{peak['rss_mb']:.0f} MB (address space limit "
        f"{limits['address_space_bytes'] / 2**30:g} GiB)."
    )


def fuzz_cost(record: dict[str, Any]) -> str:
    """The most expensive input found for each reader."""
    head = ("reader", "inputs", "refused", "most CPU seconds", "most MB", "failures")
    rows = [
        (
            row["target"],
            f"{row['cases']:,}",
            f"{row['refused']:,}",
            f"{row['seconds']['value']:.2f} ({row['seconds']['input_bytes']:,} bytes)",
            f"{row['bytes']['value'] / 1e6:.0f} ({row['bytes']['input_bytes']:,} bytes)",
            f"{len(row['failures'])}",
        )
        for row in record["targets"]
    ]
    bound = record["bounds"]
    return (
        f"{table(head, rows)}\n\nInputs of up to {record['input_bytes']:,} bytes, "
        f"{record['minutes']:g} minutes, seed {record['seed']}. Limits: "
        f"{bound['cpu_seconds']:.1f} CPU seconds and {bound['bytes'] / 1e6:.0f} MB."
    )


def fuzz_coverage(record: dict[str, Any]) -> str:
    """Outcomes of coverage-guided fuzzing."""
    head = ("reader", "inputs", "refused", "edges seen", "failures")
    rows = [
        (
            row["target"],
            f"{row['cases']:,}",
            f"{row['refused']:,}",
            f"{row.get('edges', 0):,}",
            f"{len(row['failures'])}",
        )
        for row in record["targets"]
    ]
    return (
        f"{table(head, rows)}\n\nInputs of up to {record['input_bytes']:,} bytes, "
        f"{record['minutes']:g} minutes, seed {record['seed']}, atheris {record['atheris']}."
    )


def writing(record: dict[str, Any]) -> str:
    """What was tried on files being written, and how often it failed."""
    rows = []
    for row in record["rows"]:
        told = f"skipped: {row['skipped']}" if row["skipped"] else str(row["failures"])
        rows.append((row["what"], row["wanted"], f"{row['times']:,}", told, row["note"]))
    return table(("case", "expected", "runs", "failures", "note"), rows)


PRINTERS = {
    printer.__name__: printer
    for printer in (
        resnet20_cifar10,
        rate_accuracy,
        budgets,
        transform_arms,
        transform_forms,
        transform_baselines,
        transform_metric,
        transform_retraining,
        transform_basis_bits,
        transform_steps,
        mnist_mlp,
        gpfq_width,
        speed,
        kernel_speed,
        calibration_rows,
        coding,
        coding_sources,
        coding_large,
        loading,
        memory,
        forward_ratios,
        language_model,
        sentences,
        imagenet,
        recurrent,
        resume,
        fuzz,
        fuzz_cost,
        fuzz_coverage,
        writing,
        hemp_mnist,
        hemp_resnet,
        hemp_starts,
        hemp_starts_cifar,
        hemp_form,
        hemp_options,
        pwfn_resnet,
        pwfn_forms,
        pwfn_clustering,
        lowbit_digits,
        lowbit_resnet,
        lowbit_resnet8,
        lowbit_cifar100,
        brevitas_qat,
        onnx_w8a8,
        onnx_processors,
        onnx_nbits,
        step_cost,
        trellis_networks,
        column_steps,
        many_rates,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="*", metavar="NAME", help=f"of {', '.join(PRINTERS)}")
    for name in parser.parse_args().records or list(PRINTERS):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            print(f"## {name}\n\nno record yet: run benchmarks/{name}.py\n")
            continue
        record = json.loads(path.read_text())
        print(f"## {name}\n\n{_origin(record)}\n\n{PRINTERS[name](record)}\n")


if __name__ == "__main__":
    main()

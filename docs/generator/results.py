"""The results page: pictures from the records, and the figures in the sentences between them."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from string import Template
from typing import Any

from .records import BENCHMARKS, from_old_coder, has_record, note, record

__all__ = ["results"]

Row = dict[str, Any]
_COMPARED = {
    "language_model": """### A language model

SmolLM2-135M: bytes of the whole file, and perplexity on windows of 1,024 tokens of the test text of
WikiText-2, computed in float32. Windows of the validation text calibrate. The linear weights were
published on grids of 4 bits: figures at 4 bits and more say nothing about other networks. `g64`:
groups of 64, since 128 does not divide 576.""",
    "sentences": """### Sentence embeddings

all-MiniLM-L6-v2: cosine of the embeddings of sentences of the test text with those of the float
network, and rank correlation of the similarities of all pairs.""",
    "imagenet": """### ImageNet

EfficientNet-Lite0 on the images of `imagenet_sample` with odd labels; those with even labels
calibrate.""",
    "recurrent": "### Recurrent networks",
}
_PAGE = Path(__file__).with_name("results.template")


def results() -> str:
    """Return the page."""
    figures = {
        "budgets": _budgets(),
        "records": _records(),
        **_without_training(),
        **_trained(),
        **_coding(),
        **_costs(),
        **_tables(),
        **_trust(),
    }
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(figures)


def _tables() -> dict[str, str]:
    import summary  # noqa: PLC0415  (a script beside the benchmarks, found by generator.records)

    names = {"ratios": "forward_ratios", "large": "memory", "resumed": "resume"}
    tables = {key: summary.PRINTERS[name](record(name)) for key, name in names.items()}
    return {**tables, "compared": _compared()}


def _compared() -> str:
    """Return the tables of networks beside other tools, as far as they have been measured."""
    import summary  # noqa: PLC0415  (a script beside the benchmarks, found by generator.records)

    made = {name: text for name, text in _COMPARED.items() if has_record(name)}
    tables = {name: summary.PRINTERS[name](record(name)) for name in made}
    parts = [f"{made[name]}\n\n{table}\n\n" for name, table in tables.items()]
    return "## Sequences, and other tools\n\n" + "".join(parts) if parts else ""


def _budgets() -> str:
    import summary  # noqa: PLC0415  (a script beside the benchmarks, found by generator.records)

    found = record("budgets")
    tables: str = summary.PRINTERS["budgets"](found)
    return tables + note(found)


def _without_training() -> dict[str, str]:
    rows = record("resnet20_cifar10")["summary"]
    arms: dict[tuple[str, int], list[float]] = {}
    for row in record("transform_arms")["measured"]:
        arms.setdefault((row["arm"], row["budget"]), []).append(row["accuracy"])
    size = max(budget for _, budget in arms)
    mnist = record("mnist_mlp")
    chosen, checks = mnist["selected_on_validation"], mnist["checks"]
    return {
        **{f"{r['method']}_2": f"{r['accuracy_mean']:.1f}" for r in rows if r["bits"] == 2},
        "no_feedback": f"{mean(arms['identity, no feedback, none', size]):.1f}",
        "feedback": f"{mean(arms['identity, feedback, none', size]):.1f}",
        "mnist_gpfq": f"{chosen['gpfq as published']['test']:.2f}",
        "mnist_nearest": f"{chosen['nearest']['test']:.2f}",
        "mnist_searched": f"{chosen['gpfq, searched radius']['test']:.2f}",
        "findings": f"{sum(checks.values())} of {len(checks)}",
    }


def _trained() -> dict[str, str]:
    hemp = record("hemp_resnet")["runs"]
    pwfn = {row["kind"]: row for row in record("pwfn_resnet")["summary"]}
    return {
        "hemp_epochs": f"{max(run['settings']['epochs'] for run in hemp):.0f}",
        "hemp_missing": str(record("hemp_mnist")["missing"]),
        "pwfn_values": f"{pwfn['pwfn']['values']:.0f}",
        "pwfn_top": f"{pwfn['pwfn']['accuracy']:.2f}",
        "rounded_values": f"{pwfn['rounded']['values']:.0f}",
        "rounded_top": f"{pwfn['rounded']['accuracy']:.2f}",
        "lowbit_missing": str(record("lowbit_resnet")["missing"]),
        "brevitas_missing": str(record("brevitas_qat")["missing"]),
    }


def _coding() -> dict[str, str]:
    rows = record("coding")["networks"]
    total = {
        name: sum(row["index_bytes"][name] for row in rows)
        for name in ("smallest", "fast", "nncodec", "order-0 entropy")
    }
    speeds = [
        row["rans"]["decode_msymbols_per_second"] for row in record("coding_sources")["speed"]
    ]
    loaded = record("loading")["loading"]
    seconds = loaded["seconds"]
    return {
        "saved": f"{100 * (1 - total['smallest'] / total['nncodec']):.1f}",
        "fast_saved": f"{100 * (1 - total['fast'] / total['order-0 entropy']):.1f}",
        "fast_speed": f"{min(speeds):.0f} to {max(speeds):.0f}",
        "smaller": f"{loaded['safetensors_bytes'] / loaded['file_bytes']:.0f}",
        "slower": f"{seconds['state_dict'] / seconds['safetensors']:.0f}",
    }


def _costs() -> dict[str, str]:
    speed, steps = record("speed"), record("step_cost")["rows"]
    most = max(row["max_live_mib"] for row in speed["measured"])
    passes = [r["float_passes_cpu"] for r in speed["measured"] if r["max_live_mib"] == most]
    (lsq,) = [row for row in steps if (row["kind"], row["dtype"]) == ("W4A4, LSQ", "float32")]
    low, high = speed["peer"]["float_passes_cpu"]
    return {
        "passes": f"{min(passes):.0f} to {max(passes):.0f}",
        "peer": speed["peer"]["tool"],
        "peer_passes": f"{low} to {high}",
        "peer_source": speed["peer"]["source"],
        "lsq": f"{lsq['median_ratio']:.1f}",
    }


def _trust() -> dict[str, str]:
    fuzz, guided, cost = record("fuzz"), record("fuzz_coverage"), record("fuzz_cost")
    failures = len(fuzz["failures"])
    failures += sum(len(row["failures"]) for found in (guided, cost) for row in found["targets"])
    return {
        "fuzzed": f"{fuzz['cases']:,}",
        "guided": f"{sum(row['cases'] for row in guided['targets']):,}",
        "failures": str(failures),
    }


def _records() -> str:
    lines = ["| record | of what | coder |", "|---|---|---|"]
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        found = record(path.stem)
        link = f"[{path.stem}](../../benchmarks/results/{path.name})"
        coder = "format 1" if from_old_coder(found) else f"format {found['environment']['format']}"
        lines.append(f"| {link} | {found['model']} | {coder} |")
    return "\n".join(lines)

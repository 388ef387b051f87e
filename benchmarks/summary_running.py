"""Tables of loading, of memory and of running exported networks, for summary.py."""

from __future__ import annotations

from typing import Any

from tables import table

__all__ = [
    "forward_ratios",
    "loading",
    "memory",
    "onnx_nbits",
    "onnx_processors",
    "onnx_w8a8",
    "recurrent",
    "resume",
]


def loading(record: dict[str, Any]) -> str:
    """Seconds and memory to load 25 million weights, against safetensors."""
    found = record["loading"]
    seconds, memory = found["seconds"], found["peak_growth_mib"]
    ways = {
        "a state dict": ("state_dict", "state_dict"),
        "a state dict, two threads": ("state_dict_by_two", "state_dict_by_two"),
        "into a network": ("into_network", "into"),
        "into a network, two threads": ("into_network_by_two", "into_by_two"),
        f"one tensor, {found['one_tensor_name']}": ("one_tensor", ""),
        "ten rows of that tensor": ("some_rows_of_it", ""),
        "safetensors": ("safetensors", "safetensors"),
        "safetensors, values not read": ("safetensors_untouched", ""),
    }
    rows = [
        (way, f"{seconds[timed]:.3f}", f"{memory[measured]:.0f}" if measured else "")
        for way, (timed, measured) in ways.items()
    ]
    head = ("loading", "s", "peak growth MiB")
    return (
        f"{found['weights']:,} weights: {found['file_bytes']:,} bytes at effort "
        f"`{found['effort']}`, {found['safetensors_bytes']:,} as safetensors, "
        f"{found['float_mib']:.1f} MiB of values.\n\n"
        f"{table(head, rows)}\n\n{_efforts(found)}\n\n{_codecs(found)}"
    )


def _efforts(found: dict[str, Any]) -> str:
    """Bytes and seconds by effort, with one and with two threads."""
    rows = [
        (
            f"`{effort}`",
            f"{row['file_bytes']:,}",
            *(f"{row[f'{way}_seconds'][n]:.2f}" for way in ("encode", "load") for n in "12"),
            f"{found['weights'] / 1e6 / row['load_seconds']['1']:.1f}",
        )
        for effort, row in found["efforts"].items()
    ]
    head = ("effort", "file bytes", "encode, s", "2 threads, s", "load, s", "2 threads, s")
    return table((*head, "million weights loaded per second"), rows)


def _codecs(found: dict[str, Any]) -> str:
    """Symbols per second by codec, in the file of the default effort."""
    rows = [
        (
            codec,
            f"{row['bodies']}",
            f"{row['symbols']:,}",
            f"{row['symbols'] / 1e6 / row['seconds']:.2f}",
        )
        for codec, row in found["codecs"].items()
    ]
    return table((f"codec in `{found['effort']}`", "bodies", "symbols", "decode, Msym/s"), rows)


def memory(record: dict[str, Any]) -> str:
    """Peak memory and time of compressing language models, and of loading their files."""
    rows, loads = [], []
    for row in record["measured"]:
        case, told = (row["network"], row["method"], row["weights"]), row["compress"]
        sizes = (told["peak_mb"], told["anonymous_peak_mb"], row["formula_mb"])
        seconds = (told["compress_cpu_seconds"], told["save_cpu_seconds"])
        rows.append((*case, *(f"{v:,.0f}" for v in (*sizes, *seconds, told["file_bytes"]))))
        for task in ("eager", "lazy"):
            if found := row.get(task):
                values = (found["peak_mb"], found["anonymous_peak_mb"])
                times = (found["load_cpu_seconds"], found["forward_cpu_seconds"])
                same = {True: "yes", False: "no"}.get(found.get("identical"), "")
                told_of = (*(f"{v:,.0f}" for v in values), *(f"{v:.2f}" for v in times), same)
                loads.append((*case[:2], task, *told_of))
    memories = ("peak MB", "anonymous MB")
    head = ("network", "method", "weights in", *memories, "formula MB")
    below = ("network", "method", "loading", *memories, "load, CPU s", "64 tokens, CPU s")
    return (
        f"{table((*head, 'compress, CPU s', 'save, CPU s', 'file bytes'), rows)}\n\n"
        f"{table((*below, 'same bits as eager'), loads)}\n\n"
        f"Activations held: at most {record['max_live_mib']} MiB. Effort `{record['effort']}`."
    )


def forward_ratios(record: dict[str, Any]) -> str:
    """Cost of compressing real networks, in passes of the float network over the same batches."""
    rows = []
    for row in record["measured"]:
        if "stopped_after_seconds" in row:
            told = f"stopped after {row['stopped_after_seconds']:.0f} s"
            rows.append((row["network"], row["case"], told, "", "", "", ""))
            continue
        goal = f"{row['at_most_passes']}"
        if "at_most_cpu_seconds" in row:
            goal += f", or {row['at_most_cpu_seconds']} CPU s"
        numbers = (f"{row['forward_passes']:.1f}", goal, f"{row['compress_cpu_seconds']:.0f}")
        rest = (f"{row['evaluations']}", f"{row['process_peak_rss_mb']:,.0f}")
        rows.append((row["network"], row["case"], *numbers, *rest))
    head = ("network", "method", "passes", "aim", "CPU s", "evaluations", "peak MB")
    left = f"\n\nNot measured: {', '.join(record['left_out'])}." if record["left_out"] else ""
    return table(head, rows) + left


def recurrent(record: dict[str, Any]) -> str:
    """Output error and bytes of recurrent networks, by how many of their weights see data."""
    rows = [
        (
            row["network"],
            f"`{row['method']}`",
            f"{row['bits']}",
            row["calibrated"],
            f"{row['relative_error']:.3f}",
            f"{row['file_bytes']:,}",
        )
        for row in record["measured"]
    ]
    moved = record["output_error_if_inputs_change_by_a_hundredth"]
    told = "; ".join(f"{network}: {error:.3f}" for network, error in moved.items())
    head = ("network", "method", "bits", "calibrated weights", "relative error", "file bytes")
    return f"{table(head, rows)}\n\nFloat networks, if inputs change by a hundredth: {told}."


def resume(record: dict[str, Any]) -> str:
    """Compressions that were killed and resumed."""
    named = [("without interruption", record["uninterrupted"])]
    named += [(f"run {place + 1}", run) for place, run in enumerate(record["interrupted"])]
    rows = [
        (
            name,
            f"{r['parts_before']} to {r['parts_after']}",
            f"{r['exit_code']}",
            f"{r['cpu_seconds']:.0f}",
        )
        for name, r in named
    ]
    same = "the same bytes" if record["same_bytes"] else "OTHER BYTES"
    size = record["files"]["resumed"]["file_bytes"]
    return (
        f"{table(('run', 'parts finished', 'exit code', 'CPU s'), rows)}\n\n"
        f"The resumed file has {same}: {size:,}."
    )


def onnx_w8a8(record: dict[str, Any]) -> str:
    """Bytes, top-1 in fewbits and onnxruntime, and latency over float32."""
    times = {batch: {k: v["median_ms"] for k, v in by.items()} for batch, by in _latency(record)}
    rows = [
        (
            row["case"],
            f"{row['file_bytes']:,}",
            f"{row['onnx_bytes']:,}",
            f"{row['accuracy']:.2f}",
            f"{row['onnxruntime_accuracy']:.2f}",
            f"{row['same_answer']:.2f}",
            *(f"{by[row['case']] / by['float32']:.2f}" for by in times.values()),
        )
        for row in record["summary"]
    ]
    head = (
        "case",
        "`.fewbits` bytes",
        "ONNX bytes",
        "top-1 %",
        "top-1 % in onnxruntime",
        "same answer %",
    )
    floats = ", ".join(f"{by['float32']:.2f} ms at batch {batch}" for batch, by in times.items())
    return (
        f"onnxruntime {record['onnxruntime']}, one thread. Float32: "
        f"{record['float_onnx_bytes']:,} bytes, {floats} (medians).\n\n"
        f"{table((*head, *(f'time over float32, batch {batch}' for batch in times)), rows)}"
    )


def onnx_processors(record: dict[str, Any]) -> str:
    """Top-1 of each form in torch, with and without VNNI, and time over float32."""
    rows = [
        (
            row["network"],
            row["form"],
            f"{row['unsigned']} of {row['weights']}",
            f"{row['accuracy']:.2f}",
            f"{row['onnxruntime_accuracy']:.2f}",
            f"{row['emulated_images']:,}",
            f"{row['accuracy_of_these']:.2f}",
            "-" if row["emulated_accuracy"] is None else f"{row['emulated_accuracy']:.2f}",
            f"{row['time_over_float32_batch_1']:.2f}",
            f"{row['time_over_float32_batch_32']:.2f}",
        )
        for row in record["summary"]
    ]
    head = ("network", "form", "unsigned weights", "top-1 %", "in onnxruntime")
    more = ("images without VNNI", "top-1 % of these", "in onnxruntime without VNNI")
    ratios = ("time over float32, batch 1", "time over float32, batch 32")
    floats = ", ".join(f"{name} {value:.2f}%" for name, value in record["float_accuracy"].items())
    kind = "with" if record["this_processor_has_vnni"] else "without"
    return (
        f"onnxruntime {record['onnxruntime']}, one thread, a processor {kind} VNNI. Without VNNI: "
        f"{record['emulator']}. Float32: {floats}.\n\n{table((*head, *more, *ratios), rows)}"
    )


def onnx_nbits(record: dict[str, Any]) -> str:
    """Bytes, outputs, what is kept, and time over float32, of each form of each network."""
    rows = []
    for found in record["networks"]:
        name = found["network"] + (f", {found['layers']} layers" if "layers" in found else "")
        for row in found["summary"]:
            times = (by[row["form"]]["over_float32"] for by in found["latency"].values())
            error = f"{row['error']:.1e}" if "error" in row else ""
            rows.append(
                (
                    name,
                    row["form"],
                    f"{row['bytes']:,}",
                    error,
                    f"{row['score']:.4f}",
                    *(f"{time:.2f}" for time in times),
                )
            )
    lengths = list(record["networks"][0]["latency"])
    head = ("network", "form", "ONNX bytes", "error of outputs", "cosine, or divergence")
    ratios = (f"time over float32, {length} tokens" for length in lengths)
    return (
        f"onnxruntime {record['onnxruntime']}, one thread; {record['bits']} bits, groups of "
        f"{record['group']}.\n\n{table((*head, *ratios), rows)}"
    )


def _latency(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(record["latency"].items(), key=lambda item: int(item[0]))

"""Tables of the benchmarks of the coder, for summary.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables import table

__all__ = ["coding", "coding_large", "coding_sources"]


def _less(ours: int, theirs: int | None) -> str:
    return "" if not theirs else f"{100 * (ours / theirs - 1):+.1f}%"


_PEERS = ("xz -9e", "zstd -22", "brotli 11", "zpaq -m5", "nncodec")
_EFFORTS = ("fast", "balanced", "smallest")
_TITLES = tuple(f"`{effort}`" for effort in _EFFORTS)


def _peer_row(net: dict[str, Any], key: str) -> list[str]:
    found = net[key]
    counted = ("order-0 entropy", *_EFFORTS, *_PEERS)
    cells = [f"{found[name]:,}" if found.get(name) is not None else "" for name in counted]
    return [*cells, _less(found["smallest"], found.get("nncodec"))]


def coding(record: dict[str, Any]) -> str:
    """Bytes of real indices by effort and peer, of the uneven tensors alone, and of whole files."""
    nets = record["networks"]
    head = ["indices, bytes", "order-0 entropy", *_TITLES, *_PEERS]
    head += ["`smallest` over nncodec"]
    names = [f"{net['network']}, {net['method']}, {net['bits']} bits" for net in nets]
    rows = [[name, *_peer_row(net, "index_bytes")] for name, net in zip(names, nets, strict=True)]
    keys = [key for key, found in nets[0]["index_bytes"].items() if found is not None]
    total = {key: sum(net["index_bytes"][key] for net in nets) for key in keys}
    rows.append(["**all**", *_peer_row({"all": total}, "all")])
    apart = [net["uneven_index_bytes"] for net in nets]
    uneven = {key: sum(found[key] or 0 for found in apart) for key in apart[0]}
    count = sum(net["uneven_tensors"] for net in nets)
    rows.append([f"**{count} uneven tensors**", *_peer_row({"all": uneven}, "all")])
    files = [
        (
            name,
            f"{net['index_bytes']['order-0 entropy'] + net['side_bytes']:,}",
            *(f"{net['files'][effort]['bytes']:,}" for effort in _EFFORTS),
            *(
                f"{net['files'][effort][f'{way}_seconds']:.2f}"
                for way in ("encode", "decode")
                for effort in _EFFORTS
            ),
        )
        for name, net in zip(names, nets, strict=True)
    ]
    titles = ["whole files, bytes", "entropy + side", *_TITLES]
    titles += [f"encode {effort}, s" for effort in _TITLES]
    titles += [f"decode {effort}, s" for effort in _TITLES]
    return (
        f"{table(head, rows)}\n\nUneven: rows or columns differ in mean magnitude by a "
        f"coefficient of variation of {record['uneven_from']} or more, beyond chance. Tensors "
        "that share a body split it in proportion to their numbers of values.\n\n"
        f"{_peer_seconds(nets)}\n\n{table(titles, files)}"
    )


def _peer_seconds(nets: Sequence[dict[str, Any]]) -> str:
    """CPU seconds of all networks together, ours those of whole files."""
    rows = []
    for effort in _EFFORTS:
        spent = (
            sum(n["files"][effort][f"{w}_seconds"] for n in nets) for w in ("encode", "decode")
        )
        rows.append((f"`{effort}`", *(f"{seconds:.1f}" for seconds in spent)))
    for peer in _PEERS:
        found = [net["peer_seconds"].get(peer) for net in nets]
        if all(found):
            rows.append((peer, *(f"{sum(pair[way] for pair in found):.1f}" for way in (0, 1))))
    return table(("all indices", "encode, CPU s", "decode, CPU s"), rows)


def coding_sources(record: dict[str, Any]) -> str:
    """Bits per symbol of synthetic sources next to their entropies, and speeds."""
    rows = [
        (
            f"{row['matrix']}, {row['shape'][0]} x {row['shape'][1]}",
            f"{row['order_0_bits']:.4f}",
            *(f"{row[f'{effort}_bits']:.4f}" for effort in _EFFORTS),
            row["smallest_codec"],
        )
        for row in record["matrices"]
    ]
    head = (
        "matrix, bits per symbol",
        "order-0 entropy",
        "`fast`",
        "`balanced`",
        "`smallest`",
        "codec",
    )
    known = [
        (
            row["source"],
            f"{row['symbols']:,}",
            f"{row['entropy']:.4f}",
            f"{row['bits']:.4f}",
            f"{row['excess_percent']:+.2f}%",
            row["codec"],
        )
        for row in record["sources"]
    ]
    of = ("source, bits per symbol", "symbols", "entropy", "`smallest`", "excess", "codec")
    speeds = [
        (
            case["matrix"],
            coder,
            f"{case[coder]['bits']:.3f}",
            f"{case[coder]['encode_msymbols_per_second']:.1f}",
            f"{case[coder]['decode_msymbols_per_second']:.1f}",
        )
        for case in record["speed"]
        for coder in ("rans", "mix", "constriction", "nncodec")
        if coder in case
    ]
    titles = ("1e7 symbols", "coder", "bits", "encode, Msym/s", "decode, Msym/s")
    pairs = [
        (c["matrix"], *(f"{ratio:.2f}" for ratio in c["two threads over one"].values()))
        for c in record["speed"]
    ]
    of_threads = ("speed of two threads over one", *record["speed"][0]["two threads over one"])
    seconds = record["kernels_seconds"]
    return (
        f"{table(head, rows)}\n\n{table(of, known)}\n\n{table(titles, speeds)}\n\n"
        f"{table(of_threads, pairs)}\n\nKernels compile in {seconds['compiled_cpu']} CPU seconds "
        f"({seconds['compiled_wall']} wall) and load from the cache in {seconds['loaded_cpu']} "
        f"({seconds['loaded_wall']} wall)."
    )


def coding_large(record: dict[str, Any]) -> str:
    """A sentence encoder at every effort, and a file of a billion symbols."""
    parts = []
    found = record["minilm"]
    if isinstance(found, dict):
        rows = [
            (
                f"`{effort}`",
                f"{found[effort]['bytes']:,}",
                f"{found[effort]['encode_seconds']:.2f}",
                f"{found[effort]['decode_seconds']:.2f}",
            )
            for effort in _EFFORTS
        ]
        head = (
            f"{found['weights']:,} weights at 4 bits",
            "bytes",
            "encode, CPU s",
            "decode, CPU s",
        )
        parts.append(table(head, rows))
    rows = [
        (
            f"{case['threads']}",
            way.replace("_", " "),
            f"{case[way]['wall_seconds']:.1f}",
            f"{case[way]['cpu_seconds']:.1f}",
            f"{case[way]['peak_beyond_a_tensor_mb']:.0f}",
        )
        for case in record["billion"]
        for way in ("write", "read", "read_ten_rows")
    ]
    size = record["billion"][0]
    head = (
        f"{size['symbols']:,} symbols, {size['file_bytes']:,} bytes; threads",
        "operation",
        "wall s",
        "CPU s",
        "MB beyond a tensor",
    )
    making = size["seconds_to_make_a_tensor"]
    return "\n\n".join(
        [
            *parts,
            table(head, rows),
            f"Writing includes {making:.2f} s to make each of {size['tensors']} tensors; reading "
            "includes making and comparing one in twenty.",
        ]
    )

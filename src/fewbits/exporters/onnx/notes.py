"""What an exported graph is not, and what onnxruntime makes of it, as notes."""

from __future__ import annotations

from typing import Any

from ...coded import ActivationSite, Contents
from .fake_quant import Marked
from .kernels import float_convs, float_gemms
from .packed import Packed

__all__ = ["form", "packed_weights", "slow", "what_differs"]


def packed_weights(packed: Packed, accuracy_level: int) -> list[str]:
    """Return what is packed for onnxruntime, and what is not and why."""
    notes = []
    if packed.bits:
        how = "products are of floats, and take longer"
        if accuracy_level:
            how = (
                "inputs are rounded to 8 bits, in blocks: the outputs of a layer differ by about "
                "half a percent"
            )
        notes.append(
            f"{packed.products} linear layers are MatMulNBits and {packed.lookups} look-ups are "
            "GatherBlockQuantized, operators of onnxruntime that few other readers have. With "
            f"accuracy_level={accuracy_level}, {how}."
        )
    if packed.odd:
        notes.append(
            f"{len(packed.odd)} weights are on grids without a zero: their integers are the odd "
            "ones, which take twice the bits."
        )
    left = {name: why for name, why in packed.left.items() if name not in packed.floats}
    notes += [f"{name}: not packed, {why}" for name, why in left.items()]
    return notes


def what_differs(found: Marked, contents: Contents) -> list[str]:
    """Return what is in floats, and which integers a runtime unpacks."""
    notes = [f"{name}: in floats, {why}" for name, why in found.floats.items()]
    if found.dtypes:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found.dtypes))
        notes.append(
            f"the network has {names}; the graph is of float32, and takes and gives float32."
        )
    notes += _narrow(found)
    if found.grouped:
        notes.append(
            f"{len(found.grouped)} weights have a step for each group of a neuron's inputs: blocks "
            "of DequantizeLinear. Products with them are of floats."
        )
    broad = [name for name, bits in found.widths.items() if bits == 16]
    if broad:
        notes.append(
            f"{len(broad)} weights need 16-bit integers (odd integers of an 8-bit grid without a "
            "zero): onnxruntime unpacks them to floats."
        )
    below = [name for name, grid in contents.activations.items() if grid.bits < 8]
    if below:
        notes.append(
            f"{len(below)} inputs have fewer than 8 bits: a Clip, then 8-bit integers, of which "
            "only the grid's levels occur. No faster than 8 bits."
        )
    if found.widths and not contents.activations:
        notes.append(
            "inputs are floats: runtimes unpack the weights and compute in floats, or round the "
            "inputs."
        )
    return notes


def _narrow(found: Marked) -> list[str]:
    """Return which weights take less than a byte, or are looked up."""
    notes = []
    for width, share in ((2, "a quarter of a byte"), (4, "half a byte")):
        narrow = [name for name, bits in found.widths.items() if bits == width]
        if narrow:
            notes.append(
                f"{len(narrow)} weights are {width}-bit integers: {share} each in the file; "
                "onnxruntime unpacks them to floats before it computes, there is no "
                f"{width}-bit convolution."
            )
    if found.codebooks:
        widths = ", ".join(map(str, sorted(set(found.codebooks.values()))))
        notes.append(
            f"{len(found.codebooks)} weights are indices of {widths} bits into tables of levels: "
            "onnxruntime looks the levels up when it loads the file, and computes in floats."
        )
    return notes


def form(found: Marked, contents: Contents) -> list[str]:
    """Return which form 8-bit weights that meet quantized inputs have, and why."""
    if not contents.activations:
        return []
    notes = []
    if found.unsigned:
        notes.append(
            f"{len(found.unsigned)} weights are unsigned (around 128), for any processor: signed "
            "ones would lose sums of two products that exceed 16 bits, in onnxruntime on x86 "
            "without VNNI. processor='vnni', or --processor vnni, leaves them signed, which is "
            "faster where there is VNNI; weights of 7 bits are signed, and right, anywhere."
        )
    elif found.wide:
        notes.append(
            f"{len(found.wide)} weights are signed, for processors with VNNI: on x86 without it "
            "onnxruntime may lose sums of two of their products, and answers are wrong."
        )
    whole = [bits for name, bits in found.widths.items() if name not in found.grouped]
    narrow = whole.count(8) - len(found.wide)
    if narrow:
        notes.append(
            f"{narrow} weights are signed, for any processor: no sum of two of their products "
            "exceeds 16 bits."
        )
    return notes


def slow(graph: Any, contents: Contents) -> list[str]:
    """Return what onnxruntime computes in floats although its weights and inputs have 8 bits."""
    if not contents.activations:
        return []  # all of it
    known = any(ActivationSite.of(name).output for name in contents.activations)
    advice = "" if known else "; Activations(outputs=True), or --outputs, puts one there"
    reasons = {
        "read": "read floats: what reaches them is not quantized",
        "open": f"end in floats: no quantizer follows them directly{advice}",
        "shared": "end in floats: a shortcut, say, reads what a quantizer reads too",
        "cut": "end in floats: the Clip of inputs with fewer than 8 bits, or a narrow one of the "
        "network, comes before the quantizer; with 8 bits there is no Clip",
    }
    notes = [
        f"{count} layers {reasons[why]}. onnxruntime computes these in floats, and may be slower "
        "than with float32."
        for why, count in float_convs(graph).items()
    ]
    gemms = float_gemms(graph)
    if gemms:
        notes.append(f"{gemms} linear layers are Gemm nodes: onnxruntime unpacks their weights.")
    return notes

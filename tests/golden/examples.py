"""What the golden files hold, from integer arithmetic alone: the same on every machine for ever."""

import numpy as np

from fewbits.coded import (
    ActivationGrid,
    AffineTensor,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)

OLDER = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
OLDER |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
NEWER = {"uint64": 8, "uint32": 4, "uint16": 2, "complex128": 16, "complex64": 8, "complex32": 4}
NEWER |= dict.fromkeys(["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"], 1)
NEWER |= dict.fromkeys(["float8_e4m3fnuz", "float8_e5m2fnuz"], 1)


def noise(count, seed):
    """Bytes of a linear congruential generator: high bits of the state."""
    out, state = np.empty(count, np.int64), seed
    for place in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out[place] = state >> 56
    return out


def bell(shape, seed, spread=64):
    """Integers of a bell-shaped law: sums of noise."""
    count = int(np.prod(shape))
    total = sum(noise(count, seed + k) for k in range(4)) - 510
    return (total // spread).astype(np.int32).reshape(shape)


def f32(*values):
    return np.array(values, np.float32)


def raw(shape, dtype, seed=1, stored=None):
    stored = stored or dtype
    width = (OLDER | NEWER)[stored]
    data = noise(int(np.prod(shape)) * width, seed).astype(np.uint8)
    return RawTensor(shape, dtype, data % 2 if stored == "bool" else data, stored)


def network():
    """A small convolutional network as the methods leave it: what most files look like."""
    tensors = {}
    for stage, (width, inputs) in enumerate([(8, 3), (12, 8), (12, 12)]):
        name = f"stage.{stage}."
        index = bell((width, inputs * 9), stage)
        step = f32(0.125 * (stage + 1))
        tensors[name + "conv.weight"] = GridTensor((width, inputs, 3, 3), "float32", index, step)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            values = (bell((width,), 40 + stage) + 30).astype("<f4") / np.float32(37)
            tensors[name + "bn." + leaf] = RawTensor((width,), "float32", values.view(np.uint8))
        counter = np.array([1560], "<i8").view(np.uint8)
        tensors[name + "bn.num_batches_tracked"] = RawTensor((), "int64", counter)
    head = GridTensor((10, 12), "float32", bell((10, 12), 9), np.arange(1, 11, dtype=np.float32))
    tensors["head.weight"] = head
    return Contents(
        tensors,
        aliases={"tied.weight": "head.weight"},
        activations={
            "stage.1.conv": ActivationGrid(4, 1.5, signed=False),
            "head": ActivationGrid(8, 2.25, signed=True),
        },
        metadata={"fewbits": "0.1.0", "recipe": {"method": "gpfq", "bits": 4}, "note": "é"},
    )


def kinds():
    """Every kind, option and dtype once."""
    book, other = Codebook(f32(-1, -0.25, 0, 0.5)), Codebook(f32(-3, 7))
    index = bell((6, 20), 3) % 4
    two = GridTensor((4, 3), "float32", bell((4, 3), 5), f32(0.5))
    three = GridTensor((3, 5), "float32", bell((3, 5), 6), f32(1, 2, 4), f32(0.5))
    coded = CodebookTensor((3, 5), "float32", bell((3, 5), 6) % 2, other)
    halves = f32(0, 0.5, -1, 1.5, 7, -0.0)
    rows = f32(1, 2, 3, 4, 5, 6)
    layout = Layout((6, 2, 10), (1, 0, 2))
    tensors = {
        "grid.half": GridTensor((6, 20), "float16", bell((6, 20), 1), f32(0.1), f32(-3.5)),
        "grid.rows": GridTensor((6, 2, 10), "bfloat16", bell((6, 20), 2), rows, halves),
        "grid.huge": GridTensor((), "float32", np.array([[2**31 - 1]], np.int32), f32(1), f32(2e9)),
        "grid.far": GridTensor((2,), "float32", bell((2, 1), 4), f32(1), f32(1e20)),
        "grid.minus": GridTensor((2, 1), "float32", bell((2, 1), 4), f32(-1), f32(-0.0)),
        "grid.layout": GridTensor((2, 60), "float64", bell((6, 20), 7), f32(1), layout=layout),
        "grid.empty": GridTensor((0, 7), "float32", np.zeros((0, 7), np.int32), f32(1)),
        "book.plain": CodebookTensor((6, 20), "float32", index, book),
        "book.scale": CodebookTensor((120,), "float32", index, book, f32(0.3)),
        "book.rows": CodebookTensor((6, 20), "float32", index // 2, other, rows, layout),
        "transform.left": TransformTensor((20,), "float32", three, two),
        "transform.right": TransformTensor((4, 5), "float16", two, three, "right"),
        "transform.book": TransformTensor((4, 5), "float32", coded, two),
        "raw.zero_dim": raw((), "float32"),
        "raw.empty": raw((3, 0), "int64"),
        "raw.stored": raw((5,), "float32", 2, "bfloat16"),
        "raw.large": RawTensor((70_000,), "uint8", np.full(70_000, 3, np.uint8)),
    }
    tensors |= {f"raw.{dtype}.x": raw((3, 4), dtype, 3) for dtype in OLDER}
    grids = {"a": ActivationGrid(2, 0.1, signed=True), "b": ActivationGrid(16, 3.0, signed=False)}
    return Contents(tensors, activations=grids, metadata={"list": [1, -0.5, None, True, {}]})


def chunks():
    """Streams of two chunks: one value, as often as a chunk can have it, and what remains."""
    first = 2**21 // 72
    index = np.concatenate([np.full((first, 72), -3, np.int32), smooth(20, 8, 3, 5)])
    data = np.concatenate([np.full(2**21, 3), noise(2000, 8)]).astype(np.uint8)
    return Contents(
        {
            "index.weight": GridTensor((first + 20, 8, 3, 3), "float32", index, f32(0.5)),
            "raw.bytes": RawTensor((2**21 + 2000,), "uint8", data),
        }
    )


def empty():
    """Nothing at all."""
    return Contents({})


def smooth(outputs, inputs, side, seed):
    """Kernels whose taps resemble the one before and the one above, rows of unlike size."""
    fresh = bell((outputs, inputs, side, side), seed, 24).astype(np.int64)
    fresh = fresh * (2 + np.arange(outputs) % 5)[:, None, None, None] // 4
    taps = np.zeros_like(fresh)
    for y in range(side):
        for x in range(side):
            beside = taps[:, :, y, x - 1] if x else 0
            above = taps[:, :, y - 1, x] if y else 0
            taps[:, :, y, x] = fresh[:, :, y, x] + (beside + above) // 2
    return (taps // 4).clip(-31, 31).astype(np.int32).reshape(outputs, inputs * side * side)


def filters():
    """Kernels of several sizes; rows and inputs of unlike size; kernels whose outputs come last."""
    fresh = bell((20, 60), 11, 16) * (np.arange(20) % 7 // 2)[:, None].astype(np.int32)
    rows = fresh * (np.arange(60) % 5 // 2 + 1).astype(np.int32) // 24
    turned = Layout((6, 8, 3, 3), (1, 0, 2, 3))
    long = smooth(10, 8, 3, 6).reshape(10, -1, 6).repeat(2, axis=1).reshape(10, -1)
    return Contents(
        {
            "three.weight": GridTensor((12, 6, 3, 3), "float32", smooth(12, 6, 3, 1), f32(0.5)),
            "five.weight": GridTensor((9, 3, 5, 5), "float32", smooth(9, 3, 5, 2) + 1000, f32(1)),
            "seven.weight": GridTensor((4, 1, 9, 9), "float32", smooth(4, 1, 9, 3), f32(1)),
            "rows.weight": GridTensor((20, 60), "float32", rows, f32(0.25)),
            "line.weight": GridTensor((10, 24, 6), "float32", long, f32(2)),
            "upright.weight": GridTensor((8, 6, 9, 1), "float32", smooth(8, 6, 3, 7), f32(2)),
            "levels.weight": GridTensor(
                (9, 8, 3, 3), "float32", np.sign(smooth(9, 8, 3, 5)), f32(2)
            ),
            "turned.weight": GridTensor(
                (8, 6, 3, 3), "float32", smooth(6, 8, 3, 9), f32(1), layout=turned
            ),
        }
    )


def tuples():
    """Neighbours that tell each other, in pairs and in triples, the last of them not full."""
    pair = np.array([[-1, 2], [0, 0], [2, -1], [1, 1]], np.int32)
    triple = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 0]], np.int32)
    twos = pair[noise(450, 1) % 4].reshape(-1)[:-1].reshape(1, 899)
    threes = triple[noise(300, 2) % 3].reshape(-1)[:-2].reshape(2, 449)
    return Contents(
        {
            "pairs": GridTensor((1, 899), "float32", twos, f32(1)),
            "between": GridTensor((16, 20), "float32", bell((16, 20), 3, 2), f32(1)),
            "triples": GridTensor((2, 449), "float32", threes, f32(1)),
        }
    )


def classes():
    """What is fast: rows, inputs and taps of unlike size, rare extremes, fine grids, floats."""
    shape = (40, 12, 3, 3)
    sizes = (1 + np.arange(40) % 4)[:, None, None] * (1 + np.arange(12) % 3)[:, None]
    taps = bell((40, 12, 9), 21, 24) * sizes * (1 + np.arange(9) % 2 * 3) // 8
    rows = bell((32, 90), 5, 16) * (1 + np.arange(32, dtype=np.int32) % 5)[:, None] // 3
    rows[3, 7], rows[9, 80], rows[0, 0] = 700, -5000, 64
    fine = bell((30, 60), 9, 1) * (4 + np.arange(30, dtype=np.int32))[:, None] // 8
    finer = bell((9, 70), 13, 1) * 4096 + bell((9, 70), 17, 1)
    finer[4, 4] = 2**30
    grids = {"extremes": rows, "fine": fine, "finer": finer, "large": finer + 2**30 + 2**23}
    kernels = GridTensor(shape, "float32", taps.astype(np.int32).reshape(40, 108), f32(0.5))
    floats = (
        np.stack([noise(500, 23), 60 + noise(500, 29) % 3], axis=1).astype(np.uint8).reshape(-1)
    )
    return Contents(
        {"kernels": kernels, "floats": RawTensor((500,), "float16", floats)}
        | {
            name: GridTensor(index.shape, "float32", index.astype(np.int32), f32(0.25))
            for name, index in grids.items()
        }
    )


def wide():
    """Alphabets with levels of many symbols, and with both ends of 32 bits."""
    rows = bell((8, 35), 5, 16) * (1 + np.arange(8, dtype=np.int32) % 3)[:, None] // 3
    rows[3, 7], rows[6, 30], rows[0, 0] = 700, -5000, 64
    fine = np.cumsum(bell((6, 40), 9, 1), axis=1).astype(np.int32)
    ends = np.zeros((3, 20), np.int32)
    ends[1, 3], ends[2, 11] = 2**31 - 1, -(2**31)
    grids = {"extremes": rows, "fine": fine, "ends": ends, "below": -abs(fine), "above": rows**2}
    return Contents(
        {
            name: GridTensor(index.shape, "float32", np.ascontiguousarray(index), f32(0.5))
            for name, index in grids.items()
        }
    )


def shared():
    """Small layers that share bodies: kernels alike, others between; a transform's factors."""
    tensors = {}
    for place, (outputs, inputs) in enumerate([(9, 4), (8, 9), (1, 8), (12, 8)]):
        index = smooth(outputs, inputs, 3, 20 + 4 * place)
        shape = (outputs, inputs, 3, 3)
        tensors[f"layer.{place}.conv.weight"] = GridTensor(shape, "float32", index, f32(0.5))
        between = bell((6, 10), 30 + place)
        tensors[f"layer.{place}.gate.weight"] = GridTensor((6, 10), "float32", between, f32(1))
        for part in ("up", "down"):  # of equal alphabets
            signs = np.sign(bell((5, 12), 60 + place, 100))
            tensors[f"layer.{place}.{part}.weight"] = GridTensor((5, 12), "float32", signs, f32(1))
    constant = GridTensor((3, 1), "float32", np.full((3, 1), 7, np.int32), f32(1))
    tensors["constant"] = constant
    index = smooth(8, 6, 3, 40)
    two = GridTensor((6, 8), "float32", bell((6, 8), 44), f32(1))
    three = GridTensor((8, 54), "float32", index, f32(0.25))
    tensors["last"] = TransformTensor((6, 54), "float32", three, two)
    return Contents(tensors)


def pictures():
    """Rows that are pictures, dead inputs, rare and one-sided symbols."""
    y, x = np.divmod(np.arange(144), 12)
    inside = (y - 6) ** 2 + (x - 5) ** 2 < 24
    strokes = smooth(20, 1, 12, 7) * inside
    rare = bell((20, 60), 12, 24) * (noise(1200, 13).reshape(20, 60) < 30)
    tall = np.repeat(bell((6, 60), 14, 40), 3, axis=0) * (np.arange(18) % 4 > 1)[:, None]
    flat = (noise(700, 15) < 20).astype(np.int32).reshape(7, 100)
    grids = {
        "strokes": strokes,
        "rare": rare + 7,
        "tall": np.ascontiguousarray(tall.T),
        "above": flat * (1 + noise(700, 16).reshape(7, 100) % 5),
        "below": -3 * flat,
    }
    return Contents(
        {
            name: GridTensor(index.shape, "float32", index.astype(np.int32), f32(0.5))
            for name, index in grids.items()
        }
    )


def zeros():
    """Quantized inputs below zero: signed, and with a zero inside of the grid."""
    grids = {
        "stem": ActivationGrid(8, 2.5, signed=True),
        "block.act@0": ActivationGrid(4, 1.25, signed=False, zero=3),
        "block.act@1": ActivationGrid(4, 6.0, signed=False),
        "head:out": ActivationGrid(16, 0.75, signed=False, zero=65535),
    }
    weight = GridTensor((4, 9), "float32", bell((4, 9), 1), f32(0.5))
    return Contents({"stem.weight": weight}, activations=grids)


def dtypes():
    """Every dtype that raw tensors only have: in groups, and one with a stream of its own."""
    tensors = {f"raw.{dtype}.x": raw((3, 4), dtype, 3) for dtype in NEWER}
    tensors["raw.none"] = raw((0, 2), "complex64")
    large = np.full(4400 * 16, 63, np.uint8)
    tensors["raw.large"] = RawTensor((4400,), "complex128", large)
    return Contents(tensors)


def exact():
    """Floats by exponent, with signs, zeros and values from 16 bits; grids with minima."""
    values = (bell((1100,), 51, 1) * (1 + noise(1100, 55) % 5)).astype("<f4")
    brain = np.ascontiguousarray((values / np.float32(7)).view("<u2")[1::2])
    sparse = np.where(noise(1100, 57) < 90, values.astype("<f8") / 3, 0)
    tensors = {
        "brain": RawTensor((1100,), "bfloat16", brain.view(np.uint8)),
        "sparse.values": RawTensor((1100,), "float64", sparse.view(np.uint8)),
    }
    index, rows = noise(120, 61).astype(np.int32).reshape(12, 10) % 16, bell((12,), 63)
    step, low = (1 + rows % 7) / np.float32(8), rows / np.float32(4)
    step, low = step.astype(np.float32), low.astype(np.float32)
    one = AffineTensor((120,), "float16", index, f32(0.375), f32(-2.5))
    turned = Layout((6, 2, 10), (1, 0, 2))
    tensors["affine.one"] = one
    tensors["affine.rows"] = AffineTensor((6, 20), "float32", index, step, low)
    tensors["affine.turned"] = AffineTensor((2, 60), "bfloat16", index, step, low, turned)
    return Contents(tensors)


def path(halves):
    """Integers that follow the trellis: twice these, or one more where a column asks for odd."""
    state = np.zeros(halves.shape[1], np.int32)
    out = np.empty_like(halves)
    for row, numbers in enumerate(halves):
        out[row] = 2 * numbers + (state & 1)
        state = (state >> 1) ^ 5 * (state & 1) ^ (out[row] & 2)
    return out


def paths():
    """Columns that follow the trellis: kernels, rows, one that is far out, and some that do not."""
    far = bell((30, 8), 71, 30)
    far[:, 3] *= 4000
    sparse = bell((40, 20), 77, 24) * (noise(800, 78).reshape(40, 20) < 60)
    grids = {
        "three.weight": GridTensor(
            (12, 5, 3, 3), "float32", path(smooth(12, 5, 3, 1) // 3), f32(1)
        ),
        "five.weight": GridTensor((9, 4, 5, 5), "float32", path(smooth(9, 4, 5, 2) // 3), f32(0.5)),
        "one.weight": GridTensor((20, 30), "float32", path(bell((20, 30), 75, 50)), f32(0.5)),
        "zeros.weight": GridTensor((8, 40), "float32", np.zeros((8, 40), np.int32), f32(0.5)),
        "odd": GridTensor((30, 8), "float32", bell((30, 8), 3) | 1, f32(1)),
    }
    rest = {"far.weight": path(far), "sparse.weight": path(sparse)}
    return Contents(
        {n: GridTensor(i.shape, "float32", i.astype(np.int32), f32(2)) for n, i in rest.items()}
        | grids
    )


def fast_paths():
    """Columns that follow the trellis, and rows of unlike size."""
    halves = bell((24, 12), 75, 24) * (1 + np.arange(24, dtype=np.int32) % 3)[:, None] // 2
    return Contents({"one.weight": GridTensor((24, 12), "float32", path(halves), f32(0.5))})


# Name to contents, and the effort that writes them.
EXAMPLES = {
    "v2.0/network": (network, "balanced"),
    "v2.0/kinds": (kinds, "fast"),
    "v2.0/chunks": (chunks, "smallest"),
    "v2.0/empty": (empty, "balanced"),
    "v2.0/filters": (filters, "smallest"),
    "v2.0/tuples": (tuples, "smallest"),
    "v2.0/classes": (classes, "fast"),
    "v2.0/wide": (wide, "smallest"),
    "v2.0/shared": (shared, "smallest"),
    "v2.0/pictures": (pictures, "smallest"),
    "v2.0/zeros": (zeros, "fast"),
    "v2.0/dtypes": (dtypes, "fast"),
    "v2.0/common": (network, "balanced"),
    "v2.1/exact": (exact, "fast"),
    "v2.1/paths": (paths, "smallest"),
    "v2.1/fast_paths": (fast_paths, "fast"),
}

# Files in which every matrix has settings of its own: the writer has matrices share them now, and
# takes fewer bytes. Readers go on reading both.
LARGER = ("v2.0/network", "v2.0/filters", "v2.0/shared")

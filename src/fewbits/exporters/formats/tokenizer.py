"""A tokenizer of Hugging Face: its files, and as keys of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .gguf_file import Value

__all__ = ["tokenizer_files", "tokenizer_keys"]

_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "*processor_config.json"),
)
_NORMAL, _CONTROL, _OWN, _UNUSED = 1, 3, 4, 5
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_files(folder: str) -> dict[str, bytes]:
    """Return the files of a tokenizer by name.

    Raises:
        ConfigError: there are none.
    """
    found = {
        path.name: path.read_bytes()
        for rule in _FILES
        for path in sorted(Path(folder).glob(rule))
        if path.is_file()
    }
    if not found:
        raise ConfigError(
            f"tokenizer: the folder {folder!r} has no files of a tokenizer. Name the folder of a "
            "Hugging Face model, or leave it out."
        )
    return found


def tokenizer_keys(folder: str, size: int, pre: str) -> dict[str, Value]:
    """Return the keys of a byte-level BPE tokenizer, that of Llama 3 and many others.

    Args:
        folder: with its ``tokenizer.json``.
        size: rows of the embedding; what the tokenizer does not use is filled up.
        pre: llama.cpp's name of the rules that cut text into words.

    Raises:
        ConfigError: the tokenizer is missing, of another kind, or larger than ``size``.
    """
    read = _read(folder, "tokenizer.json")
    config = _read(folder, "tokenizer_config.json")
    bpe = read.get("model", {})
    if bpe.get("type") != "BPE" or "ByteLevel" not in json.dumps(read.get("pre_tokenizer")):
        raise ConfigError(
            f"tokenizer: that of {folder!r} is not a byte-level BPE in a tokenizer.json, the only "
            "kind that is written. Leave it out, and convert it by llama.cpp."
        )
    added = {entry["content"]: entry for entry in read.get("added_tokens", [])}
    ids = {**bpe["vocab"], **{text: entry["id"] for text, entry in added.items()}}
    if ids and max(ids.values()) >= size:
        raise ConfigError(
            f"tokenizer: that of {folder!r} has {max(ids.values()) + 1} tokens, the network "
            f"{size}. Name the folder of this network."
        )
    tokens = [f"[PAD{place}]" for place in range(size)]
    kinds = [_UNUSED] * size
    for text, place in ids.items():
        tokens[place], kinds[place] = text, _NORMAL
        if text in added:
            kinds[place] = _CONTROL if added[text].get("special") else _OWN
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe.get("merges", [])]
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        **({"tokenizer.ggml.merges": merges} if merges else {}),
    }
    for ours, theirs in _SPECIAL.items():
        named = config.get(f"{ours}_token")
        text = named.get("content") if isinstance(named, Mapping) else named
        if text in ids:
            keys[f"tokenizer.ggml.{theirs}_token_id"] = ids[text]
    keys["tokenizer.ggml.add_bos_token"] = _adds_first(read, config)
    template = _template(folder, config)
    return keys | ({"tokenizer.chat_template": template} if template else {})


def _adds_first(read: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether texts begin with the special token for that."""
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    last = read.get("post_processor") or {}
    steps = last.get("processors", [last])
    return any("SpecialToken" in (step.get("single") or [{}])[0] for step in steps)


def _template(folder: str, config: Mapping[str, Any]) -> str:
    path = Path(folder) / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


def _read(folder: str, name: str) -> Mapping[str, Any]:
    """Return what a JSON file holds; nothing if there is no such file."""
    path = Path(folder) / name
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"tokenizer: {str(path)!r} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"tokenizer: {str(path)!r} must hold an object.")
    return found

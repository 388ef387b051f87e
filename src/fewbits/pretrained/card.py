"""The model card of a folder: what the network is, how many bytes it takes, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..coded import JSONValue, SizeReport

__all__ = ["Card", "base_model_of"]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WITH_TRANSFORMERS = """\
import fewbits  # before the weights are read
from transformers import {loader}

model = {loader}.from_pretrained("{name}")"""
_BY_CLASS = """\
import fewbits

model = fewbits.from_pretrained("{name}", YourNetwork)"""


def base_model_of(config: Mapping[str, Any]) -> str:
    """Return the name on the Hub of the network that was compressed; "" if it is unknown.

    transformers notes where a network came from; a path, which says more of a machine than of a
    network, is left out.
    """
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and _REPOSITORY.fullmatch(name) else ""


@dataclass(frozen=True)
class Card:
    """What a model card tells.

    Attributes:
        name: name of the network.
        config: its configuration.
        report: the itemised size of its file.
        weights_bytes: bytes of the file of weights on disk.
        metadata: that of the file, with the recipe.
        metrics: measurements by name, such as {"perplexity": 12.3}.
        base_model: name on the Hub of the network that was compressed, if known.
    """

    name: str
    config: Mapping[str, Any]
    report: SizeReport
    weights_bytes: int
    metadata: Mapping[str, JSONValue]
    metrics: Mapping[str, float]
    base_model: str = ""

    def text(self) -> str:
        """Return the card in Markdown, with the front matter that the Hub reads."""
        base = f"[{self.base_model}](https://huggingface.co/{self.base_model})"
        origin = f" of {base}" if self.base_model else ""
        return "\n".join(
            (
                f"---\n{yaml.safe_dump(self._front_matter(), sort_keys=False)}---\n",
                f"# {self.name}\n",
                f"A compressed version{origin}, written by "
                "[fewbits](https://pypi.org/project/fewbits/).\n",
                "| | |\n|---|---:|",
                *(f"| {what} | {value} |" for what, value in self._rows()),
                f"\n## Use\n\n```\npip install fewbits\n```\n\n```python\n{self._use()}\n```",
                *self._recipe(),
                "",
            )
        )

    def _front_matter(self) -> dict[str, Any]:
        known = "model_type" in self.config
        front: dict[str, Any] = {"library_name": "transformers" if known else "fewbits"}
        front["tags"] = ["fewbits", "compressed"]
        if self.base_model:
            front["base_model"] = self.base_model
            front["base_model_relation"] = "quantized"
        return front

    def _rows(self) -> list[tuple[str, str]]:
        report = self.report
        return [
            ("bytes of the weights", f"{self.weights_bytes:,}"),
            ("before, each tensor in its own dtype", f"{report.float_bytes:,}"),
            ("times smaller", f"{report.float_bytes / self.weights_bytes:.2f}"),
            (f"bits per {'quantized ' * report.coverage.low}weight", f"{self._bits():.3f}"),
            *((name.replace("|", "/"), f"{value:.6g}") for name, value in self.metrics.items()),
        ]

    def _bits(self) -> float:
        return 8 * self.weights_bytes / max(1, self.report.weights)

    def _use(self) -> str:
        names = self.config.get("architectures")
        if isinstance(names, list) and names and "model_type" in self.config:
            return _WITH_TRANSFORMERS.format(loader=names[0], name=self.name)
        return _BY_CLASS.format(name=self.name)

    def _recipe(self) -> list[str]:
        recipe = self.metadata.get("recipe")
        if not recipe:
            return []
        text = yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False)
        return ["\n## Recipe\n", f"```yaml\n{text}```"]

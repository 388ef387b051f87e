"""What a training was asked to do, kept in its folder: so that ``--resume DIR`` says it all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..disk import write
from ..errors import ConfigError, SourceError

__all__ = ["Order", "only_if_begun"]

_SCHEMA = "fewbits.run/1"
_FILE = "run.json"
_RESUMABLE = ("last.pt", "start.fewbits")
_LOGS = ("metrics.csv", "tensorboard")


@contextmanager
def only_if_begun(folder: Path) -> Iterator[None]:
    """Leave nothing of a run behind if the block fails before there is what to resume.

    Other files of the folder stay; who interrupts the block keeps everything.
    """
    there = folder.is_dir()
    before = {name for name in (_FILE, *_LOGS) if (folder / name).exists()}
    try:
        yield
    except Exception:
        if folder.is_dir() and not any((folder / name).exists() for name in _RESUMABLE):
            for name in {_FILE, *_LOGS} - before:
                _remove(folder / name)
            if not there and not any(folder.iterdir()):
                folder.rmdir()
        raise


@dataclass(frozen=True, kw_only=True)
class Order:
    """A training as asked for: plain values only.

    Attributes:
        model: source of the network; ``weights``, its checkpoint.
        data: source of the data; ``selection``, of data to judge epochs on.
        start: compressed network to go on from.
        recipe: as :meth:`fewbits.Recipe.to_dict` gives it.
        out: the file to write.
        folder: of checkpoints and logs.
        calibration_samples: for a stage before the training.
        evaluate: whether to tell the accuracy on the test split.
        metadata: whether the file tells recipe and source.
    """

    model: str
    weights: str | None
    data: str
    selection: str | None
    start: str | None
    recipe: dict[str, Any]
    out: str
    folder: str
    effort: str = "balanced"
    calibration_samples: int = 1024
    evaluate: bool = False
    save_seconds: float = 300.0
    logs: tuple[str, ...] = ("csv",)
    precision: str = "float32"
    metadata: bool = True

    def keep(self) -> None:
        """Write it into the folder."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1)
        write(text.encode(), folder / _FILE)

    @classmethod
    def of_folder(cls, folder: Path) -> Order:
        """Read what :meth:`keep` wrote.

        Raises:
            ConfigError: the folder holds no run.
            SourceError: its description cannot be read.
        """
        path = folder / _FILE
        if not path.is_file():
            raise ConfigError(
                f"there is no run to resume in {str(folder)!r}: it holds no {_FILE}. Name the "
                "folder that was given by --run, or FILE.run beside the output FILE."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {entry.name for entry in fields(cls)}
            data.setdefault("metadata", True)  # runs begun before there was a choice
            if data.pop("schema") != _SCHEMA or set(data) != known:
                raise ValueError("it is of another version")
            return cls(**{**data, "logs": tuple(data["logs"]), "folder": str(folder)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{path}: cannot be read: {error}. Train again.") from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

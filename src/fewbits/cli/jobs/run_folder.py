"""What a training was asked to do, kept in its folder: so that ``--resume DIR`` says it all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import typer

from ...coding import is_effort
from ...container.frame import MAGIC
from ...errors import ConfigError, SourceError, is_number, shorten
from ...files.atomic_write import write
from ...files.json_values import read_json, read_text

__all__ = ["Order", "only_if_begun", "resumed"]

_SCHEMA = "fewbits.run/1"
_FILE = "run.json"
_RESUMABLE = ("last.pt", "start.fewbits")
_LOGS = ("metrics.csv", "tensorboard")
_LOG_NAMES = ("csv", "tensorboard")


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
            data = read_json(read_text(path))
        except (ConfigError, OSError) as error:
            raise SourceError(f"{path}: cannot be read: it {error} Train again.") from None
        known = {entry.name for entry in fields(cls)}
        if not isinstance(data, dict) or data.pop("schema", None) != _SCHEMA:
            raise SourceError(f"{path}: cannot be read: it is of another version. Train again.")
        data.setdefault("metadata", True)  # runs begun before there was a choice
        wrong = sorted(known ^ set(data)) or [k for k in data if not _CHECKS[k](data[k])]
        if wrong:
            raise SourceError(
                f"{path}: cannot be read: {shorten(wrong[0])} is not as it was written. "
                "Train again."
            )
        return cls(**{**data, "logs": tuple(data["logs"]), "folder": str(folder)})


def resumed(folder: Path, given: Mapping[str, str | None]) -> Order:
    """Return the order of a folder, if the command line names the code that it would import.

    Otherwise a folder from elsewhere could have any installed function called.

    Args:
        folder: of the run.
        given: sources beside ``--resume``: "model", "data" and "selection"; None where not given.

    Raises:
        ConfigError, SourceError: as :meth:`Order.of_folder`.
        typer.BadParameter: a source is given, and another than the run was started with.
        SourceError: a source of the run is a module of one's own, which no given one names.
    """
    from ...sources import code_of  # noqa: PLC0415  (brings torch)

    order = Order.of_folder(folder)
    kept = {"model": order.model, "data": order.data, "selection": order.selection}
    given = {name: given.get(name) for name in kept}
    for name, source in given.items():
        if source is not None and source != kept[name]:
            raise typer.BadParameter(
                f"--resume goes on with what the run was started with: the {name} is "
                f"{shorten(kept[name])}, not {shorten(source)}. Start another run for that."
            )
    kinds = {name: "model" if name == "model" else "data" for name in kept}
    named = {code_of(source, kinds[name]) for name, source in given.items() if source is not None}
    foreign = {
        name: source
        for name, source in kept.items()
        if source is not None and code_of(source, kinds[name]) not in {*named, ""}
    }
    _check_replaced(Path(order.out), Path(order.folder) / _FILE)
    if foreign:
        words = " ".join(
            source if name == "model" else f"--{name} {source}" for name, source in foreign.items()
        )
        raise SourceError(
            f"{Path(order.folder) / _FILE}: names {', '.join(map(shorten, foreign.values()))}, "
            f"which would import and call code. Add {words} if you trust it."
        )
    return order


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _is_list_of_logs(value: object) -> bool:
    return isinstance(value, list) and all(log in _LOG_NAMES for log in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "weights": _is_text_or_none,
    "data": _is_text,
    "selection": _is_text_or_none,
    "start": _is_text_or_none,
    "recipe": lambda value: isinstance(value, dict),
    "out": _is_text,
    "folder": _is_text,
    "effort": is_effort,
    "calibration_samples": _is_count,
    "evaluate": _is_switch,
    "save_seconds": lambda value: is_number(value) and value >= 0,
    "logs": _is_list_of_logs,
    "precision": _is_text,
    "metadata": _is_switch,
}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_replaced(out: Path, told: Path) -> None:
    """Refuse to replace, because a folder says so, a file that no run of this package wrote."""
    if not out.is_file():
        return
    with out.open("rb") as file:
        head = file.read(len(MAGIC))
    if head != MAGIC:
        raise ConfigError(
            f"{told}: the run is to write {str(out)!r}, which exists and is no .fewbits file. Move "
            "that away if the run may write there."
        )

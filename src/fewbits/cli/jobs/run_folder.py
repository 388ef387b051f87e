"""The options of a training run, stored in its folder so that ``--resume DIR`` is enough."""

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

__all__ = ["RunRequest", "remove_if_not_begun", "resume_request"]

_SCHEMA = "fewbits.run/1"
_FILE = "run.json"
_RESUMABLE = ("last.pt", "start.fewbits")
_LOGS = ("metrics.csv", "tensorboard")
_LOG_NAMES = ("csv", "tensorboard")


@contextmanager
def remove_if_not_begun(folder: Path) -> Iterator[None]:
    """Remove the files of a run if the block fails before there is anything to resume.

    Other files in the folder stay, and so does everything if the user interrupts the block.
    """
    existed = folder.is_dir()
    before = {name for name in (_FILE, *_LOGS) if (folder / name).exists()}
    try:
        yield
    except Exception:
        if folder.is_dir() and not any((folder / name).exists() for name in _RESUMABLE):
            for name in {_FILE, *_LOGS} - before:
                _remove(folder / name)
            if not existed and not any(folder.iterdir()):
                folder.rmdir()
        raise


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The options of a training run, in plain values.

    Attributes:
        model: source of the network.
        weights: its checkpoint.
        data: source of the data.
        selection: source of the data to evaluate epochs on.
        start: compressed network to start from.
        recipe: as returned by :meth:`fewbits.Recipe.to_dict`.
        out: the file to write.
        folder: folder for checkpoints and logs.
        effort: coding effort.
        calibration_samples: samples for a compression stage before training.
        evaluate: whether to report accuracy on the test split.
        save_seconds: time between checkpoints within an epoch.
        logs: "csv", "tensorboard" or both.
        precision: precision to train in.
        metadata: whether to store recipe and source in the file.
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

    def save(self) -> None:
        """Write the request into its folder."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1)
        write(text.encode(), folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> RunRequest:
        """Read the request that :meth:`save` wrote into ``folder``.

        Raises:
            ConfigError: the folder holds no run.
            SourceError: the request cannot be read.
        """
        path = folder / _FILE
        if not path.is_file():
            raise ConfigError(
                f"no run to resume in {str(folder)!r}: there is no {_FILE}. Name the folder given "
                "to --run, which by default is the output file plus '.run'."
            )
        try:
            data = read_json(read_text(path))
        except (ConfigError, OSError) as error:
            raise SourceError(f"{path}: cannot be read: it {error} Start a new run.") from None
        known = {entry.name for entry in fields(cls)}
        if not isinstance(data, dict) or data.pop("schema", None) != _SCHEMA:
            raise SourceError(
                f"{path}: cannot be read: it was written by another version. Start a new run."
            )
        data.setdefault("metadata", True)  # older runs have no such option
        wrong = sorted(known ^ set(data)) or [k for k in data if not _CHECKS[k](data[k])]
        if wrong:
            raise SourceError(
                f"{path}: cannot be read: {shorten(wrong[0])} is missing, unknown or invalid. "
                "Start a new run."
            )
        return cls(**{**data, "logs": tuple(data["logs"]), "folder": str(folder)})


def resume_request(folder: Path, given: Mapping[str, str | None]) -> RunRequest:
    """Read the request in ``folder``, provided the command line names the code it would import.

    Without that, a folder from someone else could call any installed function.

    Args:
        folder: folder of the run.
        given: sources given with ``--resume``: "model", "data" and "selection", or None.

    Raises:
        ConfigError, SourceError: as :meth:`RunRequest.load`.
        typer.BadParameter: a given source differs from that of the run.
        SourceError: a source of the run is user code that the command line does not name.
    """
    from ...sources import code_of  # noqa: PLC0415  (brings torch)

    request = RunRequest.load(folder)
    kept = {"model": request.model, "data": request.data, "selection": request.selection}
    given = {name: given.get(name) for name in kept}
    for name, source in given.items():
        if source is not None and source != kept[name]:
            raise typer.BadParameter(
                f"--resume continues with the options of the run, whose {name} is "
                f"{shorten(kept[name])}. Got {shorten(source)}. Start another run for that."
            )
    kinds = {name: "model" if name == "model" else "data" for name in kept}
    named = {code_of(source, kinds[name]) for name, source in given.items() if source is not None}
    untrusted = {
        name: source
        for name, source in kept.items()
        if source is not None and code_of(source, kinds[name]) not in {*named, ""}
    }
    _check_replaced(Path(request.out), Path(request.folder) / _FILE)
    if untrusted:
        arguments = " ".join(
            source if name == "model" else f"--{name} {source}"
            for name, source in untrusted.items()
        )
        raise SourceError(
            f"{Path(request.folder) / _FILE}: names {', '.join(map(shorten, untrusted.values()))}, "
            f"which would import and call code. Add {arguments} if you trust it."
        )
    return request


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


def _check_replaced(out: Path, request: Path) -> None:
    """Refuse to let a request overwrite a file that fewbits did not write."""
    if not out.is_file():
        return
    with out.open("rb") as file:
        head = file.read(len(MAGIC))
    if head != MAGIC:
        raise ConfigError(
            f"{request}: the run would overwrite {str(out)!r}, which is not a .fewbits file. Move "
            "that file away if the run may write there."
        )

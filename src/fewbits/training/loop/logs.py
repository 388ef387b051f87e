"""Logs of a run: a CSV file, and TensorBoard events if that is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ...errors import MissingExtraError, SourceError
from ...files.atomic_write import check_target, write

__all__ = ["CSVLog", "Log", "TensorBoardLog", "open_logs"]

NAMES = ("csv", "tensorboard")


class Log(Protocol):
    """Receives rows of metrics, one per step."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        ...

    def close(self) -> None:
        """Write everything that is still buffered."""
        ...


class CSVLog:
    """Writes ``metrics.csv``, one row per logged step; columns are added when needed.

    A run resumed at a step drops the rows after it, so it ends with the same file.
    """

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        check_target(path)
        self.path = path
        self.columns: list[str] = ["step"]
        rows: list[dict[str, str]] = []
        if resumed_at is not None and path.exists():
            columns, written = _read(path)
            rows = [row for row in written if _before(row, resumed_at)]
            self.columns = columns or self.columns
        self._write_all(rows)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row and write it to disk."""
        new = [name for name in row if name not in self.columns]
        if new:
            rows = _read(self.path)[1]
            self.columns += new
            self._write_all(rows)
        values = {"step": str(step), **{name: repr(value) for name, value in row.items()}}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(values)

    def close(self) -> None:
        """Do nothing: all rows are already written."""

    def _write_all(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write(text.getvalue().encode(), self.path)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, restval="", lineterminator="\n")


class TensorBoardLog:
    """Writes scalars for ``tensorboard --logdir FOLDER``; a resumed run drops later steps."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError("tensorboard", "train", "the log 'tensorboard'") from error
        purge = None if resumed_at is None else resumed_at + 1
        writer: Any = SummaryWriter
        self._writer = writer(str(folder), purge_step=purge)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write everything that is still buffered."""
        self._writer.close()


class Logs:
    """Several logs as one context manager, which closes them."""

    def __init__(self, logs: tuple[Log, ...]) -> None:
        self.logs = logs

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of a step in all of them."""
        for log in self.logs:
            log.write(step, row)

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for log in self.logs:
            log.close()


def open_logs(folder: Path | None, names: tuple[str, ...], resumed_at: int | None) -> Logs:
    """Open the logs of a run in its folder.

    Args:
        folder: folder of the run; None for no logs.
        names: "csv", "tensorboard" or both.
        resumed_at: the last finished step; None for a new run.

    Raises:
        MissingExtraError: TensorBoard is requested but not installed.
    """
    if folder is None:
        return Logs(())
    logs: list[Log] = []
    if "csv" in names:
        logs.append(CSVLog(folder / "metrics.csv", resumed_at))
    if "tensorboard" in names:
        logs.append(TensorBoardLog(folder / "tensorboard", resumed_at))
    return Logs(tuple(logs))


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a log, and its rows.

    Raises:
        SourceError: the file is not CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: is not the log of a run: {error}. Remove it.") from None


def _before(row: Mapping[str, Any], step: int) -> bool:
    """Return whether a row is complete, which the last may not be, and not after ``step``."""
    text = row.get("step") or ""
    return text.isdecimal() and int(text) <= step and None not in row.values()

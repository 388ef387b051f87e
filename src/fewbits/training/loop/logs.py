"""What a run tells while it goes on: a CSV file, and TensorBoard events where that is installed."""

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
    """Takes rows of figures, each of one step."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Note the figures of a step."""
        ...

    def close(self) -> None:
        """Write what is still held."""
        ...


class CSVLog:
    """One row per step that is told of, in ``metrics.csv``; columns appear as they are needed.

    A run that is resumed at a step drops the rows after it, and so ends with the same file.
    """

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        check_target(path)
        self.path = path
        self.columns: list[str] = ["step"]
        rows: list[dict[str, str]] = []
        if resumed_at is not None and path.exists():
            known, found = _read(path)
            rows = [row for row in found if _before(row, resumed_at)]
            self.columns = known or self.columns
        self._write_all(rows)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row; it is on disk when this returns."""
        new = [name for name in row if name not in self.columns]
        if new:
            rows = _read(self.path)[1]
            self.columns += new
            self._write_all(rows)
        values = {"step": str(step), **{name: repr(value) for name, value in row.items()}}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(values)

    def close(self) -> None:
        """Do nothing: every row is written already."""

    def _write_all(self, rows: list[dict[str, str]]) -> None:
        held = io.StringIO()
        writer = self._writer(held)
        writer.writeheader()
        writer.writerows(rows)
        write(held.getvalue().encode(), self.path)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, restval="", lineterminator="\n")


class TensorBoardLog:
    """Scalars for ``tensorboard --logdir FOLDER``; steps after the one resumed at are dropped."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError("tensorboard", "train", "the log 'tensorboard'") from error
        purge = None if resumed_at is None else resumed_at + 1
        writer: Any = SummaryWriter
        self._writer = writer(str(folder), purge_step=purge)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Note the figures of a step."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held."""
        self._writer.close()


class Logs:
    """Several logs as one, closed at the end of the block."""

    def __init__(self, logs: tuple[Log, ...]) -> None:
        self.logs = logs

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Note the figures of a step in all of them."""
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
    """Open the logs of a run in its folder; none without one.

    Args:
        folder: that of the run; None for no logs.
        names: of "csv" and "tensorboard".
        resumed_at: the last step that is done; None for a new run.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
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
        SourceError: it is no CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: is no log of a run: {error}. Remove it.") from None


def _before(row: Mapping[str, Any], step: int) -> bool:
    """Tell whether a row is whole and not after ``step``: a killed run may leave half a row."""
    told = row.get("step") or ""
    return told.isdecimal() and int(told) <= step and None not in row.values()

"""All verbs together, where ``--json`` holds its promise even if no verb comes to run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from .verb import print_error

__all__ = ["Group"]


class Group(TyperGroup):
    """Verbs that, with ``--json`` among the arguments, print every failure as one JSON object."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the verb that ``args`` (or the process) names, and exit with its code."""

        def run(standalone: bool) -> Any:
            return super(Group, self).main(
                args, prog_name, complete_var, standalone, windows_expand_args, **extra
            )

        if not standalone_mode or "--json" not in (sys.argv[1:] if args is None else args):
            return run(standalone_mode)
        try:
            code = run(False)
        except Exception as error:
            code = _tell(error)
        sys.exit(code)


def _tell(error: Exception) -> int:
    # Told by what it can do: Typer has had its usage errors from Click, and now has its own.
    told = getattr(error, "format_message", None)
    if told is not None:
        print_error("UsageError", told())
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, typer.Abort):
        print_error("Abort", "aborted")
    else:
        print_error(
            type(error).__name__,
            f"internal error: {error}. Please report it, with the traceback that the same command "
            "shows without --json.",
        )
    return 1

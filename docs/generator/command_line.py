"""The command line reference: every verb of the Typer app, with its options and their help."""

from __future__ import annotations

import re
from typing import Any

import typer

from fewbits.cli import EXIT_CODES
from fewbits.cli.app import app

__all__ = ["command_line"]

_MARKUP = re.compile(r"(?<!\\)\[/?(?:bold|italic|dim)\]")


def command_line() -> str:
    """Return the page: one section per verb, one table per group of options."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", _plain(group.help), "## Exit codes", _exit_codes()]
    parts += [_verb(name, verb) for name, verb in group.commands.items()]
    return "\n\n".join(parts) + "\n"


def _exit_codes() -> str:
    rows = [f"| {code} | {when} |" for code, when in EXIT_CODES.items()]
    told = (
        'With `--json`, an error is `{"error": {"type": ..., "message": ...}}` on standard output.'
    )
    return "\n".join(["| Code | When |", "|---|---|", *rows]) + f"\n\n{told}"


def _verb(name: str, verb: Any) -> str:
    shown = [param for param in verb.params if not getattr(param, "hidden", False)]
    arguments = [param for param in shown if not param.opts[0].startswith("-")]
    usage = " ".join(
        ["fewbits", name, *(_argument(param) for param in arguments), "[OPTIONS]"],
    )
    parts = [f"## {name}", f"```\n{usage}\n```", _help(verb.help)]
    panels: dict[str, list[Any]] = {"Arguments": arguments} if arguments else {}
    for param in shown:
        if param.opts[0].startswith("-"):
            panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(
                param
            )
    for panel, params in panels.items():
        rows = [f"| {_names(param)} | {_meaning(param)} |" for param in params]
        parts.append("\n".join([f"| {panel} | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _argument(param: Any) -> str:
    told = str(param.name).upper()
    return told if param.required else f"[{told}]"


def _names(param: Any) -> str:
    if not param.opts[0].startswith("-"):
        return f"`{param.name.upper()}`"
    names = sorted([*param.opts, *param.secondary_opts], key=len)
    return ", ".join(f"`{name}`" for name in names)


def _meaning(param: Any) -> str:
    told = _plain(param.help or "").replace("|", "\\|")
    notes = []
    if param.required and param.opts[0].startswith("-"):
        notes.append("required")
    default = param.default
    if not (param.required or default is None or default is False or callable(default)):
        notes.append(f"default `{getattr(default, 'value', default)}`")
    if getattr(param, "multiple", False) and "repeat" not in told:
        notes.append("may be repeated")
    return f"{told} ({', '.join(notes)})" if notes else told


def _help(text: str) -> str:
    """Return the help of a verb, its examples as code."""
    parts = []
    for paragraph in _plain(text).split("\n\n"):
        told = " ".join(paragraph.split())
        if told.startswith("Example: "):
            parts.append(f"```\n{told.removeprefix('Example: ')}\n```")
        else:
            parts.append(told.replace("<", "\\<"))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Take rich markup out, and what escapes it."""
    return _MARKUP.sub("`", text).replace("\\[", "[").strip()

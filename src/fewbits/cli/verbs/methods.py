"""``fewbits methods``: list the methods, or explain one."""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import getdoc
from typing import Annotated, Any

import typer

from ...report import methods_table, settings_table
from ..console.outcome import Json, Outcome, verb
from ..options.choice import method_class

__all__ = ["methods"]


@verb
def methods(
    name: Annotated[str | None, typer.Argument(help="The method to explain.")] = None,
    as_json: Json = False,
) -> Outcome:
    """List the methods, or explain one: its summary, paper, requirements and settings.

    Example: fewbits methods gpfq
    """
    if name is None:
        from ...methods import METHODS  # noqa: PLC0415  (brings torch)

        entries = [_describe(kind) for _, kind in METHODS.items()]
        return Outcome({"methods": entries}, (methods_table(entries),))
    from ...methods.setting_docs import setting_docs  # noqa: PLC0415

    kind = method_class(name)
    entry = _describe(kind)
    head = f"{name}: {entry['summary']}\npaper: {entry['paper']}\nneeds: {entry['needs']}"
    about = (getdoc(kind) or "").partition("\nAttributes:")[0].strip()
    meanings = {name: meaning.replace("``", "") for name, meaning in setting_docs(kind).items()}
    table = settings_table(entry["settings"], meanings)
    facts = {
        **entry,
        "description": about,
        "meanings": {k: meanings.get(k, "") for k in entry["settings"]},
    }
    return Outcome(facts, (f"{head}\n\n{about}\n", table))


def _describe(kind: Any) -> dict[str, Any]:
    from ...methods.schedule import Ramp  # noqa: PLC0415

    values = {f.name: "required" if f.default is MISSING else f.default for f in fields(kind)}
    return {
        "name": kind.name,
        "summary": kind.summary,
        "paper": kind.paper,
        "needs": kind.capabilities.needs,
        "capabilities": kind.capabilities.to_dict(),
        "settings": {k: v.to_dict() if isinstance(v, Ramp) else v for k, v in values.items()},
    }

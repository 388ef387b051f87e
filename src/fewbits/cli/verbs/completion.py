"""``fewbits completion``: a script that completes verbs, options and names in a shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ... import __version__
from ...coding import EFFORTS
from ...errors import shorten
from ...search import ENGINES
from ..console.outcome import Json, Outcome, verb
from ..jobs.completion import SHELLS, script, verbs_of

__all__ = ["completion"]


@verb
def completion(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")],
    *,
    as_json: Json = False,
) -> Outcome:
    """Print a script that completes verbs, options, and names of methods and formats in a shell.

    Source it in the shell's startup file. Print it again after installing a package that adds
    methods.

    Example: source <(fewbits completion bash)

    In fish: fewbits completion fish | source
    """
    if shell not in SHELLS:
        raise typer.BadParameter(f"SHELL must be one of {', '.join(SHELLS)}. Got {shorten(shell)}.")
    verbs = verbs_of(context.find_root().command, _names())
    text = script(shell, verbs, __version__)
    return Outcome({"shell": shell, "script": text}, (text.rstrip("\n"),))


def _names() -> dict[tuple[str, str], Sequence[str]]:
    """Return the names that options and arguments take, by verb and parameter."""
    from ...evaluation import METRICS  # noqa: PLC0415  (brings torch)
    from ...exporters import EXPORTERS  # noqa: PLC0415
    from ...exporters.onnx.processors import PROCESSORS  # noqa: PLC0415
    from ...methods import METHODS, post_training_methods, training_methods  # noqa: PLC0415
    from ...recipe.recipe import RECIPES  # noqa: PLC0415

    names: dict[tuple[str, str], Sequence[str]] = {
        ("compress", "method"): (*METHODS, *RECIPES),
        ("compress", "recipe"): (*RECIPES,),
        ("train", "method"): training_methods(),
        ("train", "log"): ("csv", "tensorboard"),
        ("sweep", "methods"): post_training_methods(),
        ("sweep", "split"): ("test", "selection"),
        ("sensitivity", "method"): post_training_methods(),
        ("export", "to"): (*EXPORTERS,),
        ("export", "processor"): PROCESSORS,
        ("methods", "name"): (*METHODS,),
        ("completion", "shell"): SHELLS,
    }
    for verb_name in ("compress", "train", "sweep", "sensitivity"):
        names[verb_name, "effort"] = (*EFFORTS,)
    for verb_name in ("sweep", "sensitivity"):
        names[verb_name, "engine"] = (*ENGINES,)
    for verb_name in ("compress", "evaluate"):
        names[verb_name, "metric"] = (*METRICS,)
    return names

"""Scripts that complete the command line in bash, zsh and fish: plain text, no Python at each key.

They name what the installed version knows: verbs, options, and the values of options that take
names, such as methods (those of other packages too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["SHELLS", "Option", "Verb", "script", "verbs_of"]

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Option:
    """An option with all its names, the long one first.

    ``values`` are the names it takes, several with commas between them if it ``lists`` them, or a
    file instead if it takes ``files``.
    """

    names: tuple[str, ...]
    about: str
    takes_value: bool
    values: tuple[str, ...] = ()
    lists: bool = False
    files: bool = False


@dataclass(frozen=True)
class Verb:
    """A verb with its options; ``values`` are what its argument may be, if that is a name."""

    name: str
    about: str
    options: tuple[Option, ...]
    values: tuple[str, ...] = ()


def verbs_of(group: Any, names: Mapping[tuple[str, str], Sequence[str]]) -> tuple[Verb, ...]:
    """Return the verbs of a group of commands.

    ``names`` are the values that options, or arguments, of a verb take, by (verb, parameter).
    """
    return tuple(
        Verb(
            name,
            _first_line(command.help),
            tuple(_option(name, p, names) for p in command.params if _is_option(p)),
            next(
                (tuple(names.get((name, p.name), ())) for p in command.params if not _is_option(p)),
                (),
            ),
        )
        for name, command in group.commands.items()
    )


def script(shell: str, verbs: Sequence[Verb], version: str) -> str:
    """Return the script for one of ``SHELLS``."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs, version)


def _is_option(param: Any) -> bool:
    return str(param.opts[0]).startswith("-")


def _option(verb: str, param: Any, names: Mapping[tuple[str, str], Sequence[str]]) -> Option:
    opts = tuple(sorted([*param.opts, *param.secondary_opts], key=len, reverse=True))
    values = tuple(names.get((verb, param.name), ()))
    takes_value = not getattr(param, "is_flag", False)
    lists, files = param.name in ("methods", "log"), param.name == "recipe"
    return Option(opts, _first_line(param.help), takes_value, values, lists, files)


def _first_line(text: str | None) -> str:
    line = " ".join((text or "").split("\n\n")[0].split()).replace("\\[", "[")
    return line.partition(". ")[0].rstrip(".")


_BASH = """\
# bash completion of fewbits {version}. Use: source <(fewbits completion bash)
_fewbits() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} verb= word= words=
    if [[ $cur == "=" ]]; then
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        if [[ $word != -* ]]; then verb=$word; break; fi
    done
    if [[ -z $verb ]]; then
        COMPREPLY=($(compgen -W "{verbs} --version --help" -- "$cur"))
        return
    fi
    case "$verb $prev" in
{values}
    esac
    if [[ -n $words && $cur == *,* ]]; then
        COMPREPLY=($(compgen -P "${{cur%,*}}," -W "$words" -- "${{cur##*,}}"))
        return
    elif [[ -z $words ]]; then
        case $verb in
{options}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _fewbits fewbits
"""


def _bash(verbs: Sequence[Verb], version: str) -> str:
    values = []
    for verb in verbs:
        for option in verb.options:
            if option.values:
                told = " ".join(option.values)
                values.append(f'        {_patterns(verb, [option])}) words="{told}" ;;')
        if free := [one for one in verb.options if one.takes_value and not one.values]:
            values.append(f"        {_patterns(verb, free)}) return ;;")
    options = []
    for verb in verbs:
        named = f'if [[ $cur == -* ]]; then words="{_all_options(verb)}"'
        other = f'; else words="{" ".join(verb.values)}"' if verb.values else ""
        options.append(f"            {verb.name}) {named}{other}; fi ;;")
    return _BASH.format(
        version=version,
        verbs=" ".join(verb.name for verb in verbs),
        values="\n".join(values),
        options="\n".join(options),
    )


_ZSH = """\
#compdef fewbits
# zsh completion of fewbits {version}. Use: source <(fewbits completion zsh), after compinit
_fewbits() {{
    local previous=${{words[CURRENT-1]}} verb= word=
    for word in ${{words[2,CURRENT-1]}}; do
        if [[ $word != -* ]]; then verb=$word; break; fi
    done
    if [[ -z $verb ]]; then
        compadd -- {verbs} --version --help
        return
    fi
    case "$verb $previous" in
{values}
    esac
    case $verb in
{options}
    esac
    _files
}}
if [[ ${{funcstack[1]}} == _fewbits ]]; then
    _fewbits "$@"
else
    compdef _fewbits fewbits
fi
"""


def _zsh(verbs: Sequence[Verb], version: str) -> str:
    values = []
    for verb in verbs:
        for option in verb.options:
            if option.values:
                before = "compset -P '*,'; " if option.lists else ""
                files = "; _files" if option.files else ""
                told = f"{before}compadd -- {' '.join(option.values)}{files}; return"
                values.append(f"        ({_patterns(verb, [option])}) {told} ;;")
        if free := [one for one in verb.options if one.takes_value and not one.values]:
            values.append(f"        ({_patterns(verb, free)}) _files; return ;;")
    options = []
    for verb in verbs:
        named = f"if [[ $PREFIX == -* ]]; then compadd -- {_all_options(verb)}; return; fi"
        other = f"; compadd -- {' '.join(verb.values)}; return" if verb.values else ""
        options.append(f"        ({verb.name}) {named}{other} ;;")
    return _ZSH.format(
        version=version,
        verbs=" ".join(verb.name for verb in verbs),
        values="\n".join(values),
        options="\n".join(options),
    )


def _fish(verbs: Sequence[Verb], version: str) -> str:
    lines = [
        f"# fish completion of fewbits {version}. Use: fewbits completion fish | source",
        "complete -c fewbits -n __fish_use_subcommand -l version -d 'Print the version'",
    ]
    for verb in verbs:
        about = _quoted(verb.about)
        lines.append(f"complete -c fewbits -f -n __fish_use_subcommand -a {verb.name} -d {about}")
        here = f"complete -c fewbits -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.values:
            lines.append(f"{here} -f -a {_quoted(' '.join(verb.values))}")
        for option in verb.options:
            long = [f"-l {name[2:]}" for name in option.names if name.startswith("--")]
            short = [f"-s {name[1:]}" for name in option.names if not name.startswith("--")]
            takes = " -r" if option.takes_value else ""
            if option.values:
                takes = f" -{'r' if option.files else 'x'} -a {_quoted(' '.join(option.values))}"
            names = " ".join([*long, *short])
            lines.append(f"{here} {names}{takes} -d {_quoted(option.about)}")
    return "\n".join(lines) + "\n"


def _patterns(verb: Verb, options: Sequence[Option]) -> str:
    """Return the patterns of a verb followed by one of these options."""
    return "|".join(f'"{verb.name} {name}"' for option in options for name in option.names)


def _all_options(verb: Verb) -> str:
    return " ".join([*(name for option in verb.options for name in option.names), "--help"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

"""`exact-vae completion bash | zsh`: a script that completes commands, options and values, made from the parser."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from typing import NamedTuple

VALUES = {
    "--method": ("exact", "untiled", "blend"),
    "--dtype": ("auto", "float32", "bfloat16", "float16"),
    "--device": ("auto", "cpu", "cuda", "mps", "xpu"),
    "--format": ("png", "jpg", "webp", "tiff"),
    "--layout": (
        *("ldm", "diffusers", "diffusers-old", "wan"),
        *("taesd-encoder", "taesd-decoder", "taesd-comfyui", "taesd-diffusers"),
    ),
}
"""What an option takes where the parser leaves the check to the library, whose errors list the same names."""

_BASH = r"""_exact_vae() {
    local IFS=$' \n' word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%(commands)s"
    else
        case "${COMP_WORDS[1]}:$before" in
%(values)s
        esac
    fi
    if [ -z "$words" ] && [ "${word:0:1}" = "-" ]; then
        case "${COMP_WORDS[1]}" in
%(options)s
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        IFS=$'\n'
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}
complete -o filenames -F _exact_vae exact-vae"""

_ZSH = r"""#compdef exact-vae
_exact_vae() {
    local -a commands
    commands=(%(commands)s)
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
%(options)s
    esac
}
if [ "$funcstack[1]" = _exact_vae ]; then _exact_vae "$@"; else compdef _exact_vae exact-vae; fi"""


class Option(NamedTuple):
    """One option or positional (no flags) of a command."""

    flags: tuple[str, ...]
    values: tuple[str, ...]
    takes_value: bool
    help: str


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for "bash" or "zsh", to be evaluated by the shell or kept where it looks for completions."""
    return {"bash": _bash, "zsh": _zsh}[shell](*_read(parser))


def _read(parser: argparse.ArgumentParser) -> tuple[dict[str, list[Option]], dict[str, str]]:
    """The options of every command, and what each command is for. argparse has no public way to ask."""
    kind = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]
    rows = next(action for action in parser._actions if isinstance(action, kind))  # pyright: ignore[reportPrivateUsage]
    helps = {row.dest: row.help or "" for row in rows._choices_actions}  # pyright: ignore[reportPrivateUsage]
    options = {
        name: [_option(action) for action in command._actions]  # pyright: ignore[reportPrivateUsage]
        for name, command in rows.choices.items()
    }
    return options, helps


def _option(action: argparse.Action) -> Option:
    listed = next((VALUES[flag] for flag in action.option_strings if flag in VALUES), ())
    values = tuple(map(str, action.choices)) if action.choices is not None else listed
    return Option(tuple(action.option_strings), values, action.nargs != 0, action.help or "")


def _bash(commands: Mapping[str, list[Option]], helps: Mapping[str, str]) -> str:
    values = [
        f'            {name}:{flag}) words="{" ".join(option.values)}" ;;'
        for name, options in commands.items()
        for option in options
        for flag in option.flags or (name,)
        if option.values
    ]
    flags = [
        f'            {name}) words="{" ".join(flag for option in options for flag in option.flags)}" ;;'
        for name, options in commands.items()
    ]
    first = " ".join([*helps, "--help", "--version"])
    return _BASH % {"commands": first, "values": "\n".join(values), "options": "\n".join(flags)}


def _zsh(commands: Mapping[str, list[Option]], helps: Mapping[str, str]) -> str:
    options = [
        f"    {name}) _arguments {' '.join(shlex.quote(row) for option in rows for row in _zsh_rows(option))} ;;"
        for name, rows in commands.items()
    ]
    described = " ".join(shlex.quote(f"{name}:{text}") for name, text in helps.items())
    return _ZSH % {"commands": described, "options": "\n".join(options)}


def _zsh_rows(option: Option) -> list[str]:
    """As zsh's `_arguments` takes them: `--flag[help]:value:(words)`; files where there is no list."""
    values = f"({' '.join(option.values)})" if option.values else "_files"
    if not option.flags:
        return [f"*:argument:{values}"]
    text = option.help.translate({ord(mark): None for mark in "[]:"})
    return [f"*{flag}[{text}]" + (f":value:{values}" if option.takes_value else "") for flag in option.flags]

"""What the parser knows of commands and options: a script that completes them, and words that are none of them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

VALUES = {
    "--method": ("exact", "untiled", "blend"),
    "--dtype": ("auto", "float32", "bfloat16", "float16"),
    "--device": ("auto", "cpu", "cuda", "mps", "xpu"),
    "--format": ("png", "jpg", "webp", "tiff", "npy", "safetensors", "mp4", "mkv", "webm", "gif", "apng"),
    "--layout": (
        *("ldm", "diffusers", "diffusers-old", "wan", "original", "taehv"),
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


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for "bash" or "zsh", to be evaluated by the shell or kept where it looks for completions."""
    return {"bash": _bash, "zsh": _zsh}[shell](*_read(parser))


def _read(parser: argparse.ArgumentParser) -> tuple[dict[str, list[argparse.Action]], dict[str, str]]:
    """The options and positionals (no flags) of every command, and what each command is for."""
    group = _commands(parser)
    helps = {row.dest: row.help or "" for row in group._choices_actions}
    return {name: one._actions for name, one in group.choices.items()}, helps


def _commands(parser: argparse.ArgumentParser) -> Any:
    """argparse's own record of the commands, which it has no public way to ask for."""
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # pyright: ignore


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by its name."""
    return dict(_commands(parser).choices)


def refuse_words(parser: argparse.ArgumentParser, options: argparse.Namespace, words: Sequence[str]) -> NoReturn:
    """End with exit code 2: the command's usage, and which of the words belong to other commands."""
    from .vae_option import other_half

    flags = {name: {flag for one in rows for flag in one.option_strings} for name, rows in _read(parser)[0].items()}
    said = f"unrecognized arguments: {' '.join(words)}"
    for word in words:
        option = word.partition("=")[0]
        owners = [name for name, known in flags.items() if option in known]
        if word.startswith("-") and owners:
            said += f"; {option} is an option of {', '.join(owners)}"
    commands_of(parser)[options.command].error(f"{said}{other_half(getattr(options, 'vae', None), words)}")


def _values(action: argparse.Action) -> list[str]:
    """What an option or positional takes, where that is a list."""
    listed = next((VALUES[flag] for flag in action.option_strings if flag in VALUES), ())
    return [str(value) for value in (listed if action.choices is None else action.choices)]


def _bash(commands: Mapping[str, list[argparse.Action]], helps: Mapping[str, str]) -> str:
    values = [
        f'            {name}:{flag}) words="{" ".join(_values(option))}" ;;'
        for name, options in commands.items()
        for option in options
        for flag in option.option_strings or (name,)
        if _values(option)
    ]
    flags = [
        f'            {name}) words="{" ".join(flag for option in options for flag in option.option_strings)}" ;;'
        for name, options in commands.items()
    ]
    first = " ".join([*helps, "--help", "--version"])
    return _BASH % {"commands": first, "values": "\n".join(values), "options": "\n".join(flags)}


def _zsh(commands: Mapping[str, list[argparse.Action]], helps: Mapping[str, str]) -> str:
    options = [
        f"    {name}) _arguments {' '.join(shlex.quote(row) for option in rows for row in _zsh_rows(option))} ;;"
        for name, rows in commands.items()
    ]
    described = " ".join(shlex.quote(f"{name}:{text}") for name, text in helps.items())
    return _ZSH % {"commands": described, "options": "\n".join(options)}


def _zsh_rows(option: argparse.Action) -> list[str]:
    """As zsh's `_arguments` takes them: `--flag[help]:value:(words)`; files where there is no list."""
    values = f"({' '.join(_values(option))})" if _values(option) else "_files"
    if not option.option_strings:
        return [f"*:argument:{values}"]
    text = (option.help or "").translate({ord(mark): None for mark in "[]:"})
    value = "" if option.nargs == 0 else f":value:{values}"
    return [f"*{flag}[{text}]{value}" for flag in option.option_strings]

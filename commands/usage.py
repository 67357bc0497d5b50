"""Words of a command line that no option of the command takes: what they are, in its usage's last line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .vae_option import other_half


def refuse_words(parser: argparse.ArgumentParser, options: argparse.Namespace, words: Sequence[str]) -> NoReturn:
    """End with exit code 2: the command's usage, and which of the words belong to other commands."""
    commands = commands_of(parser)
    said = f"unrecognized arguments: {' '.join(words)}"
    for word in words:
        option = word.partition("=")[0]
        owners = [name for name, one in commands.items() if option in _options(one)]
        if word.startswith("-") and owners:
            said += f"; {option} is an option of {', '.join(owners)}"
    commands[options.command].error(f"{said}{other_half(getattr(options, 'vae', None), words)}")


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by its name."""
    groups: list[Any] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # pyright: ignore
    return dict(groups[0].choices)


def _options(command: argparse.ArgumentParser) -> set[str]:
    return {*command._option_string_actions}  # pyright: ignore[reportPrivateUsage]

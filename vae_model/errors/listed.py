"""What an error quotes in its one line: another error's first line, or names, all of them where they fit there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

_ROOM = 300
"""Characters that a list may take."""
_NAMED = 4
_ALIKE = 0.51
"""Of the letters; `difflib` counts."""
_MISSPELT = 0.82
"""The same for one name that a letter or two are wrong of."""


def choices(known: Iterable[str], given: object) -> str:
    """The names that could have been given: all, or their count and those that are the most like `given`."""
    names = list(known)
    if len(", ".join(names)) <= _ROOM:
        return ", ".join(names)
    word = str(given).lower()
    close = get_close_matches(word, {name.lower() for name in names}, _NAMED, _ALIKE)
    near = sorted((name for name in names if name.lower() in close), key=lambda name: close.index(name.lower()))
    near += [name for name in names if word and name.lower().endswith(f".{word}") and name not in near]
    if near:
        return f"{len(names)} names, the nearest {', '.join(near)}"
    return f"{len(names)} names, such as {', '.join(names[:_NAMED])}"


def nearest(given: object, known: Iterable[str]) -> str | None:
    """The known name that `given` is most likely a misspelling of; None where it resembles none that much."""
    return next(iter(alike(given, known, 1, _MISSPELT)), None)


def alike(given: object, known: Iterable[str], most: int, share: float) -> list[str]:
    """The known names that `given` resembles, the likeliest first; case, - and _ do not count.

    Args:    share: of the letters that must agree, from 0 to 1.
    """
    names = {_squeezed(name): name for name in known}
    return [names[found] for found in get_close_matches(_squeezed(str(given)), names, most, share)]


def misspelt(given: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """(the name that was given, the one that is meant) of those that are not known but near one that is."""
    names = list(known)
    return [(name, near) for name in given if name not in names and (near := nearest(name, names))]


def argument_names(make: Callable[..., Any]) -> list[str]:
    """The names of the arguments of a function, or of a class with those that it hands to the classes it is made of."""
    if not inspect.isclass(make):
        return list(inspect.signature(make).parameters)
    makers = [vars(kind)["__init__"] for kind in make.__mro__[:-1] if "__init__" in vars(kind)]
    names = [
        name
        for maker in makers
        for name, parameter in inspect.signature(maker).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self"
    ]
    return list(dict.fromkeys(names))


def _squeezed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def some(names: Iterable[str], most: int = _NAMED, between: str = ", ") -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return between.join(listed[:most]) + more


def first_line(error: BaseException, most: int = 1000) -> str:
    """The first line of an error's text, printable whatever bytes it quotes; its kind where it says nothing."""
    text = (str(error).splitlines() or [""])[0][:most] or type(error).__name__
    return text if text.isprintable() else ascii(text)


def on_one_line(name: str, most: int = 80) -> str:
    """A key, or another text of a file, as an error may show it, whatever characters are in it."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= most else f"{shown[:most]}..."

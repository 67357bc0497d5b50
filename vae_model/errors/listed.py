"""What an error quotes in its one line: another error's first line, or names, all of them where they fit there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

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
    alike = get_close_matches(word, {name.lower() for name in names}, _NAMED, _ALIKE)
    near = sorted((name for name in names if name.lower() in alike), key=lambda name: alike.index(name.lower()))
    near += [name for name in names if word and name.lower().endswith(f".{word}") and name not in near]
    if near:
        return f"{len(names)} names, the nearest {', '.join(near)}"
    return f"{len(names)} names, such as {', '.join(names[:_NAMED])}"


def nearest(known: Iterable[str], given: str) -> str | None:
    """The name that `given` is most likely a misspelling of; None where it resembles none that much."""
    plain = given.lower().replace("-", "_")
    return next(iter(get_close_matches(plain, [*known], 1, _MISSPELT)), None)


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

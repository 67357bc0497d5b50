"""The length of a training under all its names: one is given, and what is too many is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .config import ConfigError

KINDS = {"batches": "batches", "max_steps": "batches", "epochs": "epochs", "max_epochs": "epochs"}
"""The names in a section `trainer`, ours and Lightning's, and what they count."""
_SECTIONS = (("trainer",), ("lightning", "trainer"))


def is_length(path: Sequence[str]) -> bool:
    """Whether a key, with its sections, is a name of the length."""
    return len(path) > 1 and tuple(path[:-1]) in _SECTIONS and path[-1] in KINDS


def require_one_length(given: Mapping[str, Any]) -> None:
    """ConfigError where lengths contradict each other: batches and epochs, or two numbers of one of them.

    Args:    given: values by their keys with sections; null, and Lightning's -1, are none.
    """
    lengths = {key: value for key, value in given.items() if not is_none(key.rpartition(".")[2], value)}
    kinds = {KINDS[key.rpartition(".")[2]] for key in lengths}
    if len(kinds) < 2 and len({str(value) for value in lengths.values()}) < 2:
        return
    listed = ", ".join(f"{key} {value}" for key, value in lengths.items())
    wanted = "one of batches and epochs, got both" if len(kinds) > 1 else f"one number of {kinds.pop()}, got two"
    raise ConfigError(f"config: trainer: expected {wanted} ({listed}): remove one")


def settle_length(tree: Mapping[str, Any]) -> list[str]:
    """Leave one length in a file's content; returns the keys of what is not used, as ours come first.

    Raises: ConfigError for a section that holds several.
    """
    unused: list[str] = []
    taken: dict[str, Any] = {}
    for path in _SECTIONS:
        section = _section(tree, path)
        for name in [name for name in section if name in KINDS and is_none(name, section[name])]:
            del section[name]
        given = {".".join((*path, name)): section[name] for name in section if name in KINDS}
        require_one_length(given)
        if taken:
            unused += given
            for key in given:
                del section[key.rpartition(".")[2]]
        taken |= given
    return unused


def without_length(tree: Mapping[str, Any]) -> None:
    """Remove the lengths from a file's content, for another one that replaces them."""
    for path in _SECTIONS:
        section = _section(tree, path)
        for name in KINDS:
            section.pop(name, None)


def is_none(name: str, value: Any) -> bool:
    """Whether this is the value of a length that is not given."""
    return value is None or (value == -1 and name.startswith("max_"))


def _section(tree: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The section of this path itself; an empty one where there is none."""
    found: Any = tree
    for name in path:
        found = cast("Mapping[str, Any]", found).get(name) if isinstance(found, Mapping) else None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

"""Values of a configuration as the arguments of a function: checked by its names and its types."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from ..errors.listed import alike, misspelt
from .config import SECTIONS, require
from .key_places import advice

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_SECTION = 0.7
"""The share of letters by which a misspelt section is known: there are few, and unlike."""


def call_checked(make: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """make(**arguments), after a look at their names and types; ConfigError naming all that is wrong."""
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    parameters, problems = inspect.signature(make).parameters, list[str]()
    values = checked_values(arguments, {name: hints[name] for name in parameters}, where, problems)
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    problems += [f"{where}.{name}: expected a value, got none: add it" for name in required if name not in arguments]
    require(problems)
    return make(**values)


def converted(make: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Arguments of a constructor that somebody calls in Python, as their types; ConfigError naming all that is wrong.

    What a configuration may say is taken here, too: one word for a list of one, null for nothing; and paths.
    """
    hints, problems = get_type_hints(make), list[str]()
    plain = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}
    owner = make.__qualname__.removesuffix(".__init__")
    values = checked_values(plain, {name: hints[name] for name in plain}, owner, problems)
    require(problems)
    return values


def checked_values(given: Mapping[str, Any], kinds: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """The values of the section `where` as those types, by name; what is wrong is added to `problems`."""
    problems += unknown_names(given, tuple(kinds), where)
    values: dict[str, Any] = {}
    for name in [name for name in given if name in kinds]:
        try:
            values[name] = convert(given[name], kinds[name])
        except TypeError as error:
            problems.append(f"{where}.{name}: expected {error}, got {given[name]!r}: correct it")
    return values


def unknown_names(given: Iterable[str], known: Sequence[str], where: str) -> list[str]:
    """The problems of those names of the section `where` that are not known, each with the place it may belong to."""
    path = f"{where}." if where else ""
    above = "" if where.partition(".")[0] in ("", *SECTIONS) else "model.params."
    meant = dict(misspelt(given, known))
    if isinstance(given, Mapping):  # whole sections, whose other names are those of keys
        found = {name: alike(name, known, 1, _SECTION) for name, value in given.items() if isinstance(value, Mapping)}
        meant = {name: near[0] for name, near in found.items() if near} | meant
    return [
        f"{path}{name}: expected one of {', '.join(known)}, got an unknown key: "
        + (f"say {above}{path}{meant[name]}" if name in meant else advice(f"{above}{path}{name}"))
        for name in given
        if name not in known
    ]


def convert(value: Any, kind: Any) -> Any:
    """`value` as that type; TypeError saying which type where it is none. Text such as 1e-6 is a number to us."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (Union, types.UnionType):
        for argument in arguments:
            with suppress(TypeError):
                return convert(value, argument)
        raise TypeError(" or ".join(_name(argument) for argument in arguments))
    if origin in (tuple, Sequence):
        items: Any = [value] if isinstance(value, str) else value
        if isinstance(items, (list, tuple)):
            items = cast("Sequence[Any]", items)
            any_number = origin is Sequence or arguments[-1] is Ellipsis
            kinds = arguments[:1] * len(items) if any_number else arguments
            if len(items) == len(kinds):
                return tuple(convert(item, kind) for item, kind in zip(items, kinds, strict=True))
    elif origin is Callable:
        if callable(value):
            return value
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {str(key): convert(item, arguments[1]) for key, item in cast("Mapping[Any, Any]", value).items()}
    elif kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    elif kind is int and isinstance(value, float) and value.is_integer():  # 1e4
        return int(value)
    elif isinstance(value, kind) and not (isinstance(value, bool) and kind is int):
        return value
    raise TypeError(_name(kind))


def _name(kind: Any) -> str:
    if get_origin(kind) in (tuple, Sequence):
        arguments = get_args(kind)
        kinds = arguments[:1] if arguments[-1] is Ellipsis else arguments
        return f"a list of ({', '.join(map(_name, kinds))})"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_name, get_args(kind)))
    if get_origin(kind) is Callable:
        return "a function"
    return _NAMES.get(kind, "keys with values")

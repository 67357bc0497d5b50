"""Amounts of memory as users write and read them."""

from __future__ import annotations

import re
from typing import Any

from . import InputError

_DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_POWERS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BINARY = {letter + ending: size for letter, size in _POWERS.items() for ending in ("", "I", "IB")}
_UNITS = _DECIMAL | _BINARY
_POSITIVE = "give a positive amount, or leave it out for all that is free"
_AMOUNT = "an amount such as 2GiB, 800MiB or 2147483648"


def parse_bytes(amount: Any, what: str = "memory") -> int:
    """Bytes from 2147483648, "2GiB", "2.5 GB" or "800M" (K, M, G, T alone are binary). InputError for anything else.

    A bare number as text is bytes, but below 1 MiB it is refused: the nodes count in GiB, and "1" is meant so.
    `what`: how an error calls it.
    """
    if isinstance(amount, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", amount)
        if match is None or match[2].upper() not in _UNITS:
            raise InputError(f"{what}: expected {_AMOUNT}, got {amount!r}: {_way(amount)}")
        size = float(match[1]) * _UNITS[match[2].upper()]
        if not match[2] and 0 < size < 2**20:
            raise InputError(f"{what}: expected an amount with its unit, got {amount!r}: {amount.strip()}GiB?")
    elif isinstance(amount, bool) or not hasattr(amount, "__float__"):
        raise InputError(f"{what}: expected {_AMOUNT}, got {type(amount).__name__}: give bytes, or text with the unit")
    else:
        size = float(amount)
    if not 1 <= size < 2**63:
        way = "give less, or leave it out for all that is free" if size >= 2**63 else _POSITIVE
        raise InputError(f"{what}: expected at least 1 byte and less than 2^63, got {amount!r}: {way}")
    return int(size)


def _way(amount: str) -> str:
    """What is wrong with a text that is no amount."""
    if not amount.strip():
        return "write one, or leave it out for all that is free"
    if re.match(r"\s*-", amount):
        return _POSITIVE
    if re.match(r"\s*\d+,\d", amount):
        return "write a point in the place of the comma"
    if re.match(r"[\s\d._]*\d[eE_]", amount):
        return "write the number out, with its unit"
    return "write one number and its unit" if re.match(r"\s*\d", amount) else "write a number and its unit"


def format_bytes(size: int | float) -> str:
    """At least three significant digits in binary units: 512 B, 1.50 KiB, 12.0 MiB, 1023 MiB, 2.00 GiB."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    power = next((power for power in (1, 2, 3) if abs(size) < 1024 ** (power + 1)), 4)
    value = size / 1024**power
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"

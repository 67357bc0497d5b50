"""Cases in which every two (or three) values of all axes meet: far fewer than all combinations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import combinations, product
from typing import Any

Case = tuple[Any, ...]


def groups_of(case: Case, together: int) -> set[tuple[tuple[int, Any], ...]]:
    """What meets in a case: every `together` of its values, with their places."""
    return set(combinations(enumerate(case), together))


def covering_set(*axes: Iterable[Any], together: int = 2) -> list[Case]:
    """Always the case that adds most, the first of several, in a fixed order: the set is the same every time."""
    values = [list(axis) for axis in axes]
    chosen = _indices(tuple(map(len, values)), together)
    return [tuple(axis[index] for axis, index in zip(values, case, strict=True)) for case in chosen]


@cache
def _indices(sizes: tuple[int, ...], together: int) -> tuple[tuple[int, ...], ...]:
    new = {case: groups_of(case, together) for case in product(*map(range, sizes))}
    chosen: list[tuple[int, ...]] = []
    while gain := new[best := max(new, key=lambda case: len(new[case]))]:
        chosen.append(best)
        new = {case: left - gain for case, left in new.items()}
    return tuple(chosen)

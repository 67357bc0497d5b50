"""Where in a file an autoencoder lies: in the file itself, in a dictionary of it, behind a prefix; and which is meant.

A dictionary inside of a dictionary and a prefix are one thing here: what stands before every name. Only names are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..errors import VAEFileError
from ..errors.listed import choices, some
from ..families.layout import PREFIXES, WRAPPERS, Layout
from ..families.table import FAMILIES, all_layouts
from ..files.weights import Weights, on_one_line
from .averaged import PARTS as AVERAGES
from .averaged import TAKEN, averages, passed_over
from .keys import to_ours, to_theirs

TOP = "."
"""What the file itself is called, where a part of it is to be named."""
_SECOND = {"cond_stage_model.": "first_stage_model."}
"""Old diffusion models hold their autoencoder twice: the first is left out where the second is there."""


@dataclass(frozen=True)
class Candidate:
    """One place with the names of an autoencoder."""

    prefix: str
    rows: tuple[Layout, ...]
    """The layouts that fit; more than one is an error of the file."""
    names: Mapping[str, str]
    """Names behind the prefix, without what wrapping put into them -> the file's names."""
    notes: tuple[str, ...] = ()
    """Which of the weights and their moving average is taken, where both are there."""

    @property
    def part(self) -> str:
        """What it is called."""
        return on_one_line(self.prefix.removesuffix(".")) or TOP


def find_candidates(weights: Weights) -> list[Candidate]:
    """Every place in a file that has the names of some layout, in the order of their prefixes."""
    bare = _without_wrappers(weights.shapes)
    found: list[Candidate] = []
    for prefix in sorted(_prefixes(bare)):
        names = {name[len(prefix) :]: theirs for name, theirs in bare.items() if name.startswith(prefix)}
        rows = _fitting({name: weights.shapes[theirs] for name, theirs in names.items()})
        if rows and (_is_usual(prefix, weights.dictionaries) or _is_whole(rows[0], names.keys())):
            found.append(Candidate(prefix, rows, names))
    return [one for one in found if not any(_is_inside(one, other) for other in found)]


def _is_inside(one: Candidate, other: Candidate) -> bool:
    """Whether the names of one candidate are names of the other's model: a half of it, mostly."""
    if one is other or not one.prefix.startswith(other.prefix):
        return False
    way = one.prefix[len(other.prefix) :]
    marks = [mark for mark in one.rows[0].marks if mark in one.names]
    return any(all(to_ours(way + mark, row, 4) is not None for mark in marks) for row in other.rows)


def choose(weights: Weights, part: str | None) -> Candidate | None:
    """The autoencoder of a file, None where there is none; VAEFileError naming all where several could be meant.

    `part`: the end of its prefix or the name of its dictionary, such as "ema"; "." is the file itself.
    """
    found = find_candidates(weights)
    if part is not None:
        wanted = part.strip(".")
        named = [one for one in found if one.prefix == (f"{wanted}." if wanted else "")]
        named = named or [one for one in found if wanted and f".{one.prefix}".endswith(f".{wanted}.")]
        named = named or _averaged(found, wanted, _without_wrappers(weights.shapes))
        if [one.part for one in found] == [TOP] and not named:
            remedy = "found the file itself to be one: leave out the part"
            raise VAEFileError(f"{weights.name}: expected an autoencoder in {part!r}, {remedy}")
        if len(named) != 1:
            there = choices([one.part for one in (named or found)], wanted) or "none"
            raise VAEFileError(
                f"{weights.name}: expected an autoencoder in {part!r}, found {there}: choose one of these"
            )
        return named[0]
    if len(found) > 1:
        found = [one for one in found if _is_whole(one.rows[0], one.names.keys())] or found
    taken = {one.prefix for one in found}
    found = [one for one in found if _SECOND.get(one.prefix) not in taken]
    if len(found) > 1:
        parts = [one.part for one in found]
        raise VAEFileError(
            f"{weights.name}: expected one autoencoder, found {len(parts)}, in {some(parts, 8)}: choose one by part, "
            f"as in exact-vae convert FILE --part {parts[0]}, which writes it alone"
        )
    return _with_note(found[0], _without_wrappers(weights.shapes)) if found else None


def _averaged(found: list[Candidate], wanted: str, stored: Mapping[str, str]) -> list[Candidate]:
    """The autoencoders whose moving average is called `wanted`, with it in the place of their weights."""
    place, _, last = wanted.rpartition(".")
    if last not in AVERAGES:
        return []
    there = [one for one in found if not place or f".{one.prefix}".endswith(f".{place}.")]
    named = [(one, averages(one.names, one.prefix, stored)) for one in there]
    return [replace(one, names=names, notes=(TAKEN,)) for one, names in named if names is not None]


def _with_note(one: Candidate, stored: Mapping[str, str]) -> Candidate:
    """With the note that there is a moving average, too."""
    return one if averages(one.names, one.prefix, stored) is None else replace(one, notes=(passed_over(one.part),))


def _without_wrappers(shapes: Collection[str]) -> dict[str, str]:
    """Names without the parts that wrapping put into them -> the names. Where two become one, they stay as they are."""
    if not any(word in name for name in shapes for word in WRAPPERS):
        return {name: name for name in shapes}
    bare: dict[str, str] = {}
    for name in shapes:
        short = ".".join(word for word in name.split(".") if word not in WRAPPERS)
        bare[name if short in bare else short] = name
    return bare


def _prefixes(names: Collection[str]) -> set[str]:
    """What stands before the marks of layouts."""
    marks = {mark for layout in all_layouts() for mark in layout.marks}
    endings = tuple(marks)
    found = {name[: -len(mark)] for name in names if name.endswith(endings) for mark in marks if name.endswith(mark)}
    return {prefix for prefix in found if not prefix or prefix.endswith(".")}


def _is_usual(prefix: str, dictionaries: Collection[str]) -> bool:
    return prefix in dictionaries or all(f"{word}." in PREFIXES for word in prefix.split(".")[:-1])


def _fitting(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layout, ...]:
    """The layouts of such names and shapes."""
    rows = [layout for layout in all_layouts() if _fits(layout, shapes)]
    others = {family for row in rows for family in row.instead_of}
    return tuple(row for row in rows if row.family not in others)


def _fits(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    if not all(name in shapes for name in layout.required) or any(name in shapes for name in layout.forbidden):
        return False
    if not any(mark in shapes for mark in layout.marks):
        return False
    return layout.sides is None or layout.sides(shapes)


def _is_whole(layout: Layout, names: Collection[str]) -> bool:
    """Whether all is there that every file of a layout holds; of layouts with names of their own, one name will do."""
    family = FAMILIES[layout.family]
    if not family.plain_names:
        return True
    needed = family.core_keys(layout.name)
    return all((to_theirs(key, layout, 4) or key) in names for key in needed)

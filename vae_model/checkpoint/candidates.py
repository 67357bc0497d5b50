"""Where in a file an autoencoder lies: in the file itself, in a dictionary of it, behind a prefix; and which is meant.

A dictionary inside of a dictionary and a prefix are one thing here: what stands before every name. Only names are read.

A training keeps a moving average beside its weights, as `ema.LitEma` writes it. The weights as they were trained last
are taken unless part="ema" asks for the average, and a warning says so. A parameter that is not trained has no shadow;
it stays what it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..errors import VAEFileError
from ..errors.listed import choices, on_one_line, some
from ..families.layout import PREFIXES, WRAPPERS, Layout
from ..families.table import FAMILIES, all_layouts
from ..files.weights import Weights
from ..notes import Warned
from .keys import core_names, to_ours

TOP = "."
"""What the file itself is called, where a part of it is to be named."""
_SECOND = {"cond_stage_model.": "first_stage_model."}
"""Old diffusion models hold their autoencoder twice: the first is left out where the second is there."""
_AVERAGES = ("ema", "model_ema")
"""What `part` calls the average."""
TAKEN = "taken are the averaged weights, model_ema"
_SHADOWS = "model_ema."


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


def _find_candidates(weights: Weights, bare: Mapping[str, str]) -> list[Candidate]:
    """Every place in a file that has the names of some layout, in the order of their prefixes."""
    found: list[Candidate] = []
    for prefix in sorted(_prefixes(bare)):
        names = {name[len(prefix) :]: theirs for name, theirs in bare.items() if name.startswith(prefix)}
        rows = _fitting({name: weights.shapes[theirs] for name, theirs in names.items()})
        is_usual = prefix in weights.dictionaries or all(f"{word}." in PREFIXES for word in prefix.split(".")[:-1])
        if rows and (is_usual or _is_whole(rows[0], names.keys())):
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
    bare = _without_wrappers(weights.shapes)
    found = _find_candidates(weights, bare)
    if part is not None:
        return _named(found, part, bare, weights.name)
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
    if not found or _averaged_names(found[0], bare) is None:
        return found[0] if found else None
    note = (
        "taken are the weights as trained last, not their moving average, which is there, too: say part='ema' "
        f"(--part ema) for the average, part={found[0].part!r} for these"
    )
    return replace(found[0], notes=(Warned(note),))


def _named(found: list[Candidate], part: str, bare: Mapping[str, str], file: str) -> Candidate:
    """The one that is called `part`."""
    wanted = part.strip(".")
    named = [one for one in found if one.prefix == (f"{wanted}." if wanted else "")]
    named = named or [one for one in found if wanted and f".{one.prefix}".endswith(f".{wanted}.")]
    place, _, last = wanted.rpartition(".")
    if not named and last in _AVERAGES:
        there = [one for one in found if not place or f".{one.prefix}".endswith(f".{place}.")]
        averaged = [(one, _averaged_names(one, bare)) for one in there]
        named = [replace(one, names=names, notes=(TAKEN,)) for one, names in averaged if names is not None]
    if len(named) != 1:
        there = _there(named or found, wanted, bare)
        raise VAEFileError(f"{file}: expected an autoencoder in {part!r}, found {there}")
    return named[0]


def _there(found: list[Candidate], wanted: str, bare: Mapping[str, str]) -> str:
    """The names of what could have been meant instead, and what to do."""
    averaged = [one for one in found if _averaged_names(one, bare) is not None]
    parts = [one.part for one in found] + [f"{one.prefix}{_AVERAGES[0]}" for one in averaged]
    if parts == [TOP]:
        return "the file itself to be one: leave out the part"
    return f"{choices(parts, wanted)}: choose one of these" if parts else "none: leave out the part"


def _averaged_names(one: Candidate, bare: Mapping[str, str]) -> dict[str, str] | None:
    """Its names, with the shadow in the place of each parameter that has one; None where none has."""
    shadows = {name for name in bare if _SHADOWS in name}
    words = one.prefix.split(".")[:-1]
    parents = [".".join((*words[:count], "")) for count in range(len(words), -1, -1)] if shadows else []
    found: dict[str, str] = {}
    for name, theirs in one.names.items():
        spelled = ((parent, (name, one.prefix[len(parent) :] + name, theirs[len(parent) :])) for parent in parents)
        keys = (f"{parent}{_SHADOWS}{word.replace('.', '')}" for parent, words in spelled for word in words)
        found |= next(({name: bare[key]} for key in keys if key in shadows), {})
    if not found:
        return None
    return {name: theirs for name, theirs in one.names.items() if not name.startswith(_SHADOWS)} | found


def _without_wrappers(shapes: Collection[str]) -> dict[str, str]:
    """Names without the parts that wrapping put into them -> the names. Where two become one, they stay as they are."""
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


def _fitting(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layout, ...]:
    """The layouts of such names and shapes."""
    rows = [layout for layout in all_layouts() if _fits(layout, shapes)]
    others = {family for row in rows for family in row.instead_of}
    return tuple(row for row in rows if row.family not in others)


def _fits(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    names = shapes.keys()
    if not (names >= {*layout.required} and names.isdisjoint(layout.forbidden)) or names.isdisjoint(layout.marks):
        return False
    return layout.sides is None or layout.sides(shapes)


def _is_whole(layout: Layout, names: Collection[str]) -> bool:
    """Whether all is there that every file of a layout holds; of layouts with names of their own, one name will do."""
    return not FAMILIES[layout.family].plain_names or all(name in names for name in core_names(layout))

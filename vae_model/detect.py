"""Recognising an autoencoder from tensor names and shapes alone: which layout, which family, which configuration.

Nothing is read but names and shapes, so a safetensors header is enough; nothing that is passed in is changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .errors import VAEFileError
from .families import FAMILIES
from .files.weights import Weights, on_one_line
from .keys import count_levels, count_per_level, is_attention_weight, to_ours, to_theirs
from .layouts import IGNORED, LAYOUTS, OTHER_MODELS, PREFIXES, SCALARS, Layout

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Detected:
    """One file, understood: how its keys become ours."""

    weights: Weights
    layout: Layout
    prefix: str
    levels: int
    """Resolution levels named in the file, for layouts that count them from the other end; 0 for tiny models."""
    per_level: int
    """Numbers that a level takes, for layouts that count blocks in one row over all levels."""
    keys: Mapping[str, str]
    """Our key -> the file's key."""
    unknown: tuple[str, ...]
    """The file's keys, without their prefix, that no rule knows, or that mean what another one means already."""
    scalars: Mapping[str, str]
    """Scale and shift stored beside the model: name -> the file's key."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our key -> the shape that our module expects there."""
        return {ours: module_shape(ours, self.weights.shapes[theirs]) for ours, theirs in self.keys.items()}

    def file_name_of(self, key: str) -> str:
        """What the file would call our key."""
        return self.prefix + (to_theirs(key, self.layout, self.levels, self.per_level) or key)


def module_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Attention weights may be stored as matrices; our modules hold 1x1 convolutions."""
    return (*shape, 1, 1) if is_attention_weight(key) and len(shape) == 2 else shape


def detect(weights: Weights) -> Detected:
    """The layout of a file. VAEFileError naming the nearest layout and its missing keys where none, or several, fit."""
    for prefix in _present_prefixes(weights.shapes):
        names = [name[len(prefix) :] for name in weights.shapes if name.startswith(prefix)]
        rows = [layout for layout in LAYOUTS if _fits(layout, set(names))]
        if len(rows) > 1:
            found = " and ".join(row.name for row in rows)
            raise VAEFileError(f"{weights.name}: expected the keys of one layout, found {found}: split the file")
        if rows:
            detected = _translate(weights, rows[0], prefix, names)
            other = _name_other_model(detected.unknown)
            if other:
                raise VAEFileError(f"{weights.name}: expected an image autoencoder, found {other}: choose a VAE file")
            return detected
    raise VAEFileError(f"{weights.name}: {_explain_no_match(weights.shapes)}")


def _fits(layout: Layout, names: set[str]) -> bool:
    if not names.issuperset(layout.required) or not names.isdisjoint(layout.forbidden):
        return False
    return any(mark in names for mark in layout.marks)


def _present_prefixes(shapes: Shapes) -> list[str]:
    """The empty prefix, then every chain of up to three known prefixes that some key begins with."""
    found = [""]
    for _ in range(3):
        longer = [old + new for old in found for new in PREFIXES if (old + new) not in found]
        found += [prefix for prefix in longer if any(name.startswith(prefix) for name in shapes)]
    return found


def _translate(weights: Weights, layout: Layout, prefix: str, names: list[str]) -> Detected:
    levels, per_level = count_levels(names), count_per_level(names)
    keys: dict[str, str] = {}
    unknown: list[str] = []
    scalars: dict[str, str] = {}
    for name in names:
        ours = to_ours(name, layout, levels, per_level)
        if ours is not None and ours not in keys:
            keys[ours] = prefix + name
        elif name in SCALARS:
            scalars[name] = prefix + name
        elif not name.startswith(IGNORED):
            unknown.append(name)
    return Detected(weights, layout, prefix, levels, per_level, keys, tuple(unknown), scalars)


def _name_other_model(names: Collection[str]) -> str | None:
    """What a file with these keys is, where it is a known kind that cannot be loaded."""
    return next((what for piece, what in OTHER_MODELS if any(piece in name for name in names)), None)


def _explain_no_match(shapes: Shapes) -> str:
    """Name what the file seems to be, the nearest layout, and what it lacks of that."""
    bare = {name.removeprefix(prefix) for prefix in _present_prefixes(shapes) for name in shapes}
    scored: list[tuple[float, Layout, list[str]]] = []
    for layout in LAYOUTS:
        needed = FAMILIES[layout.family].core_keys(layout.name)
        theirs = [to_theirs(key, layout, 4) or key for key in needed]
        missing = [key for key in theirs if key not in bare]
        scored.append((len(missing) / len(theirs), layout, missing))
    _, layout, missing = min(scored, key=lambda row: row[0])
    found = _name_other_model(shapes) or f"{len(shapes)} other tensors"
    lacks = f", missing {shorten(missing)}" if missing else ""
    return (
        f"expected an autoencoder, found {found}; nearest family: {FAMILIES[layout.family].title} in {layout.name} "
        f"layout{lacks}: choose a VAE file"
    )


def shorten(names: list[str], most: int = 4) -> str:
    """The first few names, sorted, and how many more there are."""
    listed = ", ".join(on_one_line(name) for name in sorted(names)[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"

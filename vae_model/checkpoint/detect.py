"""Recognising an autoencoder from tensor names and shapes alone: which layout, which family, which configuration.

Nothing is read but names and shapes, so a safetensors header is enough; nothing that is passed in is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import VAEFileError
from ..families.layout import IGNORED, PREFIXES, SCALARS, Layout
from ..families.other_models import OTHER_MODELS
from ..families.spellings import module_shape
from ..families.table import FAMILIES, all_layouts
from ..files.latents import TENSOR_KEY
from ..files.weights import Weights, on_one_line
from .candidates import TOP, Candidate, choose
from .keys import count_levels, count_per_level, to_ours, to_theirs

_SAMPLES = "samples"
"""What a host's dictionary of latents calls them."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Detected:
    """One file, understood: how its keys become ours."""

    weights: Weights
    layout: Layout
    prefix: str
    levels: int
    """Resolution levels named in the file, for layouts that count them from the other end; 0 where none are named."""
    per_level: int
    """Numbers that a level takes, for layouts that count blocks in one row over all levels."""
    keys: Mapping[str, str]
    """Our key -> the file's key."""
    unknown: tuple[str, ...]
    """The file's keys, without their prefix, that no rule knows, or that mean what another one means already."""
    scalars: Mapping[str, str]
    """Scale and shift stored beside the model: name -> the file's key."""
    notes: tuple[str, ...] = ()
    """What was chosen and what was left out, as parts of a sentence."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our key -> the shape that our module expects there."""
        flat = self.layout.without_frames
        return {ours: module_shape(ours, self.weights.shapes[theirs], flat) for ours, theirs in self.keys.items()}

    def file_name_of(self, key: str) -> str:
        """What the file would call our key."""
        theirs = to_theirs(key, self.layout, self.levels, self.per_level) or key
        return self.keys.get(key, self.prefix + theirs)


def detect(weights: Weights, part: str | None = None) -> Detected:
    """The layout of a file. VAEFileError naming the nearest layout and its missing keys where none, or several, fit.

    `part`: which of several autoencoders in it, by the name of its dictionary or prefix.
    """
    found = choose(weights, part)
    if found is None:
        raise VAEFileError(f"{weights.name}: {_explain_no_match(weights.shapes)}")
    if len(found.rows) > 1:
        rows = " and ".join(row.name for row in found.rows)
        raise VAEFileError(f"{weights.name}: expected the keys of one layout, found {rows}: split the file")
    detected = _translate(weights, found)
    other = _name_other_model(detected.unknown)
    if other:
        raise VAEFileError(f"{weights.name}: expected an image autoencoder, found {other}: choose a VAE file")
    odd = sorted(weights.odd.intersection((*detected.keys.values(), *detected.scalars.values())))
    if odd:
        raise VAEFileError(
            f"{weights.name}: expected dense tensors, found '{on_one_line(odd[0])}' sparse or expanded: "
            "choose a checkpoint of weights"
        )
    return detected


def _present_prefixes(shapes: Shapes) -> list[str]:
    """The empty prefix, then every chain of up to three known prefixes that some key begins with."""
    found = [""]
    for _ in range(3):
        longer = [old + new for old in found for new in PREFIXES if (old + new) not in found]
        found += [prefix for prefix in longer if any(name.startswith(prefix) for name in shapes)]
    return found


def _translate(weights: Weights, found: Candidate) -> Detected:
    layout, prefix = found.rows[0], found.prefix
    levels, per_level = count_levels(found.names), count_per_level(found.names)
    keys: dict[str, str] = {}
    unknown: list[str] = []
    scalars: dict[str, str] = {}
    left: Counter[str] = Counter()
    own = {template.partition(".")[0] for template, _ in layout.rules}
    own |= {"encoder", "decoder"} if "{c}" in own else set()
    for name, theirs in found.names.items():
        first = name.partition(".")[0]
        ours = to_ours(name, layout, levels, per_level)
        if ours is not None and ours not in keys:
            keys[ours] = theirs
        elif name in SCALARS:
            scalars[name] = theirs
        elif name.startswith(IGNORED) or (f"{prefix}{first}." in weights.dictionaries and first not in own):
            left[first] += 1
        else:
            unknown.append(name)
    notes = (*weights.notes, *_where(prefix, weights.dictionaries), *found.notes, *_left_out(left))
    return Detected(weights, layout, prefix, levels, per_level, keys, tuple(unknown), scalars, notes)


def _where(prefix: str, dictionaries: Collection[str]) -> tuple[str, ...]:
    """A note, where the autoencoder was not simply the file or behind one of the usual prefixes."""
    ways = {way for way in dictionaries if prefix.startswith(way)} - {"state_dict."}
    if not ways and all(f"{word}." in PREFIXES or word == "state_dict" for word in prefix.split(".")[:-1]):
        return ()
    return (f"taken are the weights in {on_one_line(prefix.removesuffix('.')) or TOP}",)


def _left_out(left: Mapping[str, int]) -> tuple[str, ...]:
    """A note of what training leaves beside a model."""
    if not left:
        return ()
    listed = ", ".join(f"{on_one_line(name)} ({count})" for name, count in sorted(left.items())[:4])
    return (f"left out are tensors beside the autoencoder: {listed}{', ...' if len(left) > 4 else ''}",)


def _name_other_model(names: Collection[str]) -> str | None:
    """What a file with these keys is, where it is a known kind that cannot be loaded."""
    return next((what for piece, what in OTHER_MODELS if any(piece in name for name in names)), None)


def _explain_no_match(shapes: Shapes) -> str:
    """Name what the file seems to be, the nearest layout, and what it lacks of that."""
    if TENSOR_KEY in shapes or (_SAMPLES in shapes and shapes.keys() <= {_SAMPLES, "noise_mask"}):
        sides = " x ".join(map(str, shapes.get(TENSOR_KEY, shapes.get(_SAMPLES, ()))))
        return (
            f"expected an autoencoder, found latents, {sides}: give the VAE's weight file here; "
            "exact-vae decode makes pictures of latents, and vae.decode of their tensor"
        )
    bare = {name.removeprefix(prefix) for prefix in _present_prefixes(shapes) for name in shapes}
    scored: list[tuple[float, Layout, list[str]]] = []
    for layout in all_layouts():
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

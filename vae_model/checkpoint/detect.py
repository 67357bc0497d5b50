"""Recognising an autoencoder from tensor names and shapes alone: which layout, which family, which configuration.

Nothing is read but names and shapes, so a safetensors header is enough; nothing that is passed in is changed. Small
VAEs are published as two halves in one folder, a file of the encoder and one of the decoder: what is in the files
decides; only where several fit do their names pair them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from torch import Tensor

from ..errors import VAEFileError
from ..errors.listed import on_one_line, some
from ..families.hints import HALVES
from ..families.layout import IGNORED, OTHER_MODELS, PREFIXES, SCALARS, Layout
from ..families.spellings import module_shape
from ..families.table import FAMILIES, all_layouts
from ..files.folders import loose_weights
from ..files.latents import TENSOR_KEY
from ..files.weights import Weights, open_weights
from .candidates import TOP, Candidate, choose
from .keys import THIRDS, core_names, count_levels, count_per_level, to_ours, to_theirs

_SAMPLES = "samples"
"""What a host's dictionary of latents calls them."""
_MOST_FILES = 16
"""In a folder that is looked through; opening a pickle takes time."""
_HALF = re.compile(r"(?<![a-z])(en|de)c(oder)?(?![a-z])")
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
    thirds: Mapping[str, int]
    """Our keys that have but a third of the file's tensor -> which of them."""
    scalars: Mapping[str, str]
    """Scale and shift stored beside the model: name -> the file's key."""
    notes: tuple[str, ...] = ()
    """What was chosen and what was left out, as parts of a sentence."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our key -> the shape that our module expects there."""
        flat = self.layout.without_frames
        return {ours: module_shape(ours, self._shape(ours), flat) for ours in self.keys}

    def _shape(self, ours: str) -> tuple[int, ...]:
        shape = self.weights.shapes[self.keys[ours]]
        if ours not in self.thirds or not shape or shape[0] % len(THIRDS):
            return shape
        return (shape[0] // len(THIRDS), *shape[1:])

    def read(self, ours: str) -> Tensor:
        """The tensor of our key, with the sides that it has in the file."""
        tensor = self.weights.read(self.keys[ours])
        return tensor if ours not in self.thirds else tensor.chunk(len(THIRDS))[self.thirds[ours]]

    @property
    def halves(self) -> list[str]:
        """What is there of encoder and decoder."""
        return [half for half in HALVES if any(key.startswith(f"{half}.") for key in self.keys)]

    def file_name_of(self, key: str) -> str:
        """What the file would call our key."""
        theirs = to_theirs(key, self.layout, self.levels, self.per_level) or key
        return self.keys.get(key, self.prefix + theirs.removesuffix(next(filter(theirs.endswith, THIRDS), "")))


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


def _translate(weights: Weights, found: Candidate) -> Detected:
    layout, prefix = found.rows[0], found.prefix
    levels, per_level = count_levels(found.names), count_per_level(found.names)
    keys: dict[str, str] = {}
    unknown: list[str] = []
    thirds: dict[str, int] = {}
    scalars: dict[str, str] = {}
    left: Counter[str] = Counter()
    own = {template.partition(".")[0] for template, _ in layout.rules}
    own |= {"encoder", "decoder"} if "{c}" in own else set()
    for name, theirs in found.names.items():
        first = name.partition(".")[0]
        ours = to_ours(name, layout, levels, per_level)
        parts = [] if ours is not None else [to_ours(name + third, layout, levels, per_level) for third in THIRDS]
        if ours is not None and ours not in keys:
            keys[ours] = theirs
        elif found_thirds := {part: number for number, part in enumerate(parts) if part and part not in keys}:
            thirds |= found_thirds
            keys |= dict.fromkeys(found_thirds, theirs)
        elif name in SCALARS:
            scalars[name] = theirs
        elif name.startswith(IGNORED) or (f"{prefix}{first}." in weights.dictionaries and first not in own):
            left[first] += 1
        else:
            unknown.append(name)
    notes = (*weights.notes, *_where(prefix, weights.dictionaries), *found.notes, *_left_out(left))
    return Detected(weights, layout, prefix, levels, per_level, keys, tuple(unknown), thirds, scalars, notes)


def _where(prefix: str, dictionaries: Collection[str]) -> tuple[str, ...]:
    """A note, where the autoencoder was not simply the file or behind one of the usual prefixes."""
    ways = {way for way in dictionaries if prefix.startswith(way)} - {"state_dict."}
    if not ways and all(f"{word}." in PREFIXES or word == "state_dict" for word in prefix.split(".")[:-1]):
        return ()
    return (f"taken are the weights in {on_one_line(prefix.removesuffix('.')) or TOP}",)


def _left_out(left: Mapping[str, int]) -> tuple[str, ...]:
    """A note of what training leaves beside a model."""
    listed = [f"{on_one_line(name)} ({count})" for name, count in sorted(left.items())[:4]]
    more = ", ..." if len(left) > 4 else ""
    return (f"left out are tensors beside the autoencoder: {', '.join(listed)}{more}",) if left else ()


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
    bare = {*shapes}
    for _ in range(3):  # known prefixes may stand one behind the other
        bare |= {name.removeprefix(prefix) for prefix in PREFIXES for name in bare}
    lacking = [(layout, [name for name in core_names(layout) if name not in bare]) for layout in all_layouts()]
    layout, missing = min(lacking, key=lambda row: len(row[1]) / len(core_names(row[0])))
    found = _name_other_model(shapes) or f"{len(shapes)} other tensors"
    lacks = f", missing {shorten(missing)}" if missing else ""
    return (
        f"expected an autoencoder, found {found}; nearest family: {FAMILIES[layout.family].title} in {layout.name} "
        f"layout{lacks}: choose a VAE file"
    )


def pair_in_folder(folder: Path, part: str | None) -> list[Detected] | None:
    """Encoder and decoder, where a folder holds exactly one such pair and no other autoencoder.

    Returns: None where the folder is to be read in another way: it was written by diffusers, or no file is a half.
    Raises:  VAEFileError naming all that could be meant, where there are several.
    """
    files = loose_weights(folder)
    if not 1 < len(files) <= _MOST_FILES:
        return None
    looked = ((path, _look(path, part)) for path in files)
    found = {path: one for path, one in looked if one is not None}
    halves = {half: [path for path, one in found.items() if one.halves == [half]] for half in HALVES}
    if not any(halves.values()):
        return None
    pairs = [two for two in product(*halves.values()) if _are_one(*(found[path] for path in two))]
    if len({path for two in pairs for path in two}) != 2 * len(pairs):  # a file is in several: names decide
        pairs = [two for two in pairs if len({_HALF.sub("", path.name.lower()) for path in two}) == 1] or pairs
    if len(pairs) == 1 and len(found) == 2:
        note = f"taken are the halves {' and '.join(path.name for path in pairs[0])} of {folder}"
        return [replace(found[path], notes=(note, *found[path].notes)) for path in pairs[0]]
    names = [" + ".join(path.name for path in two) for two in pairs]
    paired = {path for two in pairs for path in two}
    alone = {path: f" ({half} alone)" for half, paths in halves.items() for path in paths}
    names += [path.name + alone.get(path, "") for path in found if path not in paired]
    if pairs:
        remedy = f"choose one, as in --vae {' --vae '.join(map(str, pairs[0]))}, in Python by a list"
    elif len(alone) < len(found):
        remedy = "give the file of the whole one"
    else:
        remedy = "give a file of a whole VAE, or both halves of one"
    raise VAEFileError(f"{folder}: expected a folder with one VAE, found {', '.join(names)}: {remedy}")


def _look(path: Path, part: str | None) -> Detected | None:
    """What a file is; None where it is no autoencoder, which the folder may hold, too."""
    try:
        return detect(open_weights(path), part)
    except VAEFileError:
        return None


def _are_one(encoder: Detected, decoder: Detected) -> bool:
    """Whether the two are halves of one autoencoder by their shapes."""
    family = encoder.layout.family
    if family != decoder.layout.family:
        return False
    try:
        joined = FAMILIES[family].infer(encoder.shapes | decoder.shapes, {})
        alone = FAMILIES[family].infer(encoder.shapes, {})
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return False
    return joined.latent_channels == alone.latent_channels


def shorten(names: list[str]) -> str:
    """The first few names, sorted, and how many more there are."""
    return some(on_one_line(name) for name in sorted(names))

"""Two halves in one folder, a file of the encoder and one of the decoder, as small VAEs are published.

What is in the files decides; only where several fit do their names pair them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ..errors import VAEFileError
from ..families.table import FAMILIES
from ..files.folders import loose_weights
from ..files.weights import open_weights
from .detect import Detected, detect

_MOST_FILES = 16
"""In a folder that is looked through; opening a pickle takes time."""
_HALF = re.compile(r"(?<![a-z])(en|de)c(oder)?(?![a-z])")


@dataclass(frozen=True)
class _File:
    """One autoencoder, or half of one, in a folder."""

    path: Path
    found: Detected

    @property
    def half(self) -> str:
        """encoder, decoder, or nothing for a whole one."""
        halves = {key.partition(".")[0] for key in self.found.keys} & {"encoder", "decoder"}
        return halves.pop() if len(halves) == 1 else ""

    @property
    def called(self) -> str:
        """As an error names it."""
        return f"{self.path.name} ({self.half} alone)" if self.half else self.path.name


def pair_in_folder(folder: Path, part: str | None) -> list[Detected] | None:
    """Encoder and decoder, where a folder holds exactly one such pair and no other autoencoder.

    Returns: None where the folder is to be read in another way: it was written by diffusers, or no file is a half.
    Raises:  VAEFileError naming all that could be meant, where there are several.
    """
    files = loose_weights(folder)
    if not 1 < len(files) <= _MOST_FILES:
        return None
    found = [one for one in (_look(path, part) for path in files) if one is not None]
    if not any(one.half for one in found):
        return None
    pairs = _pairs(found)
    if len(pairs) == 1 and len(found) == 2:
        note = f"taken are the halves {' and '.join(one.path.name for one in pairs[0])} of {folder}"
        return [replace(one.found, notes=(note, *one.found.notes)) for one in pairs[0]]
    paired = {one.path for pair in pairs for one in pair}
    names = [" + ".join(one.path.name for one in pair) for pair in pairs]
    names += [one.called for one in found if one.path not in paired]
    if not pairs and not all(one.half for one in found):
        remedy = "give the file of the whole one"
    elif not pairs:
        remedy = "give a file of a whole VAE, or both halves of one"
    else:
        remedy = f"choose one, as in --vae {' --vae '.join(str(one.path) for one in pairs[0])}, in Python by a list"
    raise VAEFileError(f"{folder}: expected a folder with one VAE, found {', '.join(names)}: {remedy}")


def _look(path: Path, part: str | None) -> _File | None:
    """What a file is; None where it is no autoencoder, which the folder may hold, too."""
    try:
        return _File(path, detect(open_weights(path), part))
    except VAEFileError:
        return None


def _pairs(found: list[_File]) -> list[tuple[_File, _File]]:
    """Encoders and decoders of one configuration; by their names, where one file would be in several pairs."""
    halves = {half: [one for one in found if one.half == half] for half in ("encoder", "decoder")}
    pairs = [pair for pair in product(halves["encoder"], halves["decoder"]) if _are_one(*pair)]
    if len({one.path for pair in pairs for one in pair}) == 2 * len(pairs):
        return pairs
    return [pair for pair in pairs if len({_HALF.sub("", one.path.name.lower()) for one in pair}) == 1] or pairs


def _are_one(encoder: _File, decoder: _File) -> bool:
    """Whether the two are halves of one autoencoder by their shapes."""
    family = encoder.found.layout.family
    if family != decoder.found.layout.family:
        return False
    try:
        joined = FAMILIES[family].infer(encoder.found.shapes | decoder.found.shapes, {})
        alone = FAMILIES[family].infer(encoder.found.shapes, {})
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return False
    return joined.latent_channels == alone.latent_channels

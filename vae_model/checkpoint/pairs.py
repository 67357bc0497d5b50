"""Two halves in one folder, a file of the encoder and one of the decoder, as small VAEs are published.

What is in the files decides; only where several fit do their names pair them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

from ..errors import VAEFileError
from ..families.hints import HALVES
from ..families.table import FAMILIES
from ..files.folders import loose_weights
from ..files.weights import open_weights
from .detect import Detected, detect

_MOST_FILES = 16
"""In a folder that is looked through; opening a pickle takes time."""
_HALF = re.compile(r"(?<![a-z])(en|de)c(oder)?(?![a-z])")


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

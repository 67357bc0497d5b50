"""Every kind of file and folder times every family: loaded without a word of help, and the same model to the bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.checkpoint.file_kinds import FILES, Made
from exact_vae.tests.checkpoint.folder_kinds import FOLDERS
from exact_vae.tests.checkpoint.fuzz_bases import MODELS as WITH_VIDEO
from exact_vae.tests.families.table import ROWS, Row, hints, kl, levels, random_model, wan
from exact_vae.vae_model.families.table import decode_raw, encode_raw
from torch import Tensor

pytestmark = pytest.mark.usefixtures("inference")

KINDS = FILES | FOLDERS
NARROW = levels(8, 16)
FAMILIES: dict[str, Row] = {
    "kl": Row("kl", kl(4, NARROW), 4, 2),
    "kl, attention in levels": Row("kl", kl(4, levels(8, 16, attn=(1,))), 4, 2),
    "flux2": Row("flux2", kl(8, NARROW, patch=2), 32, 4),
    "vq": Row("vq", kl(3, NARROW, double_z=False, codebook=16), 3, 2),
    "wan": Row("wan", wan(4, NARROW, over_time=(True,)), 4, 2),
    "tiny": ROWS["TAESD, TAESDXL"],
    "video": WITH_VIDEO["temporal decoder"],
}


@cache
def reference(family: str) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
    """(model, latents, what it decodes them to, images, what it encodes them to)."""
    row = FAMILIES[family]
    model = random_model(row)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, row.channels, 2, 2, generator=generator)
    x = torch.rand(1, 3, 2 * row.factor, 2 * row.factor, generator=generator) * 2 - 1
    frames = 1 if family == "video" else None
    return model, z, decode_raw(model, z, frames), x, encode_raw(model, x, row.channels)


NAMES_ONLY = ("under ", "behind ")
"""Kinds that differ in one word: tried with the family of the longest names and with that of the shortest."""
CASES = [
    (kind, family)
    for kind in KINDS
    for family in FAMILIES
    if family in ("kl", "tiny") or not kind.startswith(NAMES_ONLY)
]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_it_is_the_same_model(kind: str, family: str, tmp_path: Path) -> None:
    row = FAMILIES[family]
    model, z, images, x, latents = reference(family)
    source, options = KINDS[kind](Made(model, hints(row.config), tmp_path))
    vae = load_vae(source, dtype="float32", device="cpu", config=hints(row.config), **options)
    found = vae.first_stage_model
    assert torch.equal(decode_raw(found, z, 1 if family == "video" else None), images)
    assert torch.equal(encode_raw(found, x, row.channels), latents)


def test_there_are_enough() -> None:
    assert len(KINDS) >= 40

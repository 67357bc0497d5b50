"""The VAE that ships with the project: size, architecture, quality on photographs."""

from pathlib import Path
from typing import Any

import torch
from exact_vae import load_vae
from exact_vae.tests.families.table import SMALL
from exact_vae.vae_model.bundled import BUNDLED_FILE
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.evaluation.metrics import psnr
from exact_vae.vae_model.families.ldm.layers import AttnBlock
from exact_vae.vae_model.files.images import middle, read_photo
from exact_vae.vae_model.group_norm import GroupNorm


def test_it_is_at_most_8_megabytes_of_half_precision() -> None:
    assert BUNDLED_FILE.stat().st_size <= 8_000_000
    assert load_model(BUNDLED_FILE).stored_dtype == torch.float16


def test_it_keeps_what_exactness_is_for() -> None:
    vae = load_vae()
    assert vae.loaded.config == SMALL
    kinds = [type(layer) for layer in vae.first_stage_model.modules()]
    assert kinds.count(AttnBlock) == 2
    assert kinds.count(GroupNorm) > 20


def test_it_reconstructs_photographs(shared: Path) -> None:
    """Every sixth photograph here, at the bar that all 24 must reach; the card has the figure of all."""
    photos = [read_photo(path) for path in sorted((shared / "photos" / "val").iterdir())[::6]]
    model: Any = load_model(BUNDLED_FILE, dtype=torch.float32).model
    crops = [middle(photo, 512)[None] for photo in photos]
    with torch.inference_mode():
        scores = [float(psnr(x, model.decode(model.encode(x)))) for x in crops]
    assert sum(scores) / len(scores) >= 26.0


def test_the_card_states_what_is_shipped() -> None:
    card = (BUNDLED_FILE.parent / "README.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in load_model(BUNDLED_FILE).model.parameters())
    assert f"{parameters:,}" in card
    for word in ("Architecture", "Data", "Steps", "PSNR", "Licence"):
        assert word in card

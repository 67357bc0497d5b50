"""What is saved comes back as itself, or is refused when it is saved: random models of every family.

A model is written, read as any user would, and run: through its own methods, where the numbers must be the same bits,
and as a VAE, exactly by the engine or untiled with the reason. Every model whose arguments a file can hold must be
written in its own layout; one with something else in it must be refused, as may one be in a layout of others, which is
then written in its own. 500 of each family:

    pytest tests/checkpoint/test_saved_settings.py --hypothesis-profile=saves-500
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.checkpoint.saved_models import MAKERS, Made, make
from exact_vae.tests.exactness import TOLERANCE
from exact_vae.vae_model.checkpoint.save import layout_named, layouts_of, save
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.table import decode_raw, encode_raw
from exact_vae.vae_model.vae import VAE
from hypothesis import settings
from torch import Tensor

pytestmark = pytest.mark.usefixtures("inference")

CASES = 500 if settings.get_current_profile_name() == "saves-500" else 12
COMES_BACK = "comes back"
FRAMES = 2


@pytest.mark.parametrize("family", MAKERS)
def test_what_is_saved_comes_back(family: str, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(CASES):
        made, rng = make(family, seed), Random(seed)
        own = layout_named(made.model)
        layout = rng.choice([own, own, *layouts_of(made.model)])
        outcome = run_case(made, layout, rng, tmp_path, f"{family}, seed {seed}, {layout}: {made.arguments}")
        if made.savable and outcome != COMES_BACK:
            assert layout != own
            assert run_case(made, own, rng, tmp_path, f"{family}, seed {seed}, {own}: {made.arguments}") == COMES_BACK
        outcomes[outcome] += 1
    assert outcomes[COMES_BACK] > CASES / 4, outcomes
    print(f"\n{family}: {CASES} models: {dict(sorted(outcomes.items()))}")


def run_case(made: Made, layout: str, rng: Random, folder: Path, told: str) -> str:
    """What became of one model in one layout."""
    path = folder / "m.safetensors"
    try:
        save(made.model, path, layout=layout)
    except InputError as refusal:
        text = str(refusal)
        assert "\n" not in text, told
        assert not list(folder.iterdir()), told
        assert layout != layout_named(made.model) or not made.savable, f"{told}: {text}"
        return "refused in a layout of others" if made.savable else "refused for what no file holds"
    left_out = layouts_of(made.model)[layout].left_out
    if made.savable:
        compare(made, load_vae(path, device="cpu", dtype="float32"), left_out or None, rng, told)
    else:
        assert left_out, f"{told}: written with what no file holds"  # it may be in the half left out
    path.unlink()
    return COMES_BACK


def compare(made: Made, vae: VAE, without: str | None, rng: Random, told: str) -> None:
    """Both halves that the file has, by their own methods and as a VAE."""
    model: Any = vae.first_stage_model
    torch.manual_seed(rng.randrange(2**31))
    z = torch.randn(FRAMES, made.latent_channels, 3, 4)
    channels = vae.input_channels
    x = torch.rand(1, channels, 3 * made.factor, 2 * made.factor) * 2 - 1
    if made.decodes and without != "decoder":
        wanted = decode_raw(made.model, z)
        same(decode_raw(model, z), wanted, told)
        close(vae.decode(z), ((wanted + 1) / 2).clamp(0, 1).movedim(1, -1), told)
        assert_method(vae, told)
        same(kept(model), kept(made.model), told)
    if made.encodes and without != "encoder":
        wanted = encode_raw(made.model, x, vae.latent_channels)
        same(encode_raw(model, x, vae.latent_channels), wanted, told)
        got = vae.encode(((x + 1) / 2).movedim(1, -1))
        close(got[:, :, 0] if got.ndim == 5 else got, wanted, told)
        assert_method(vae, told)
        if hasattr(model, "regularization"):
            same(model.encode(x), made.model.encode(x), told)


def kept(model: Any) -> Tensor:
    """What a tiny model's latents are stored as, and its numbers."""
    if not hasattr(model, "scale_latents"):
        return torch.zeros(1)
    numbers = [float(getattr(model, name)) for name in ("scaling_factor", "shift_factor", "force_upcast")]
    return torch.cat([model.scale_latents(torch.linspace(-4, 4, 9)), torch.tensor(numbers)])


def same(actual: Tensor, expected: Tensor, told: str) -> None:
    assert actual.shape == expected.shape, told
    assert torch.equal(actual, expected), f"{told}: off by {float((actual - expected).abs().max()):.1e}"


def close(actual: Tensor, expected: Tensor, told: str) -> None:
    assert actual.shape == expected.shape, told
    spread = max(1.0, float(expected.max() - expected.min()))
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=TOLERANCE[torch.float32] * spread, msg=lambda text: f"{told}: {text}"
    )


def assert_method(vae: VAE, told: str) -> None:
    report = vae.last_report
    assert report is not None
    assert report.method == "exact" or (report.method == "untiled" and report.reason), told

"""What "exact" promises: the result of the untiled module, for every size, batch and direction, at the public edge.

The engine behind it is held to the same, schedule by schedule, in exact/test_programs_whole.py.
"""

from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.model_management import LocalHost
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from torch import Tensor

CPU = torch.device("cpu")


@pytest.fixture(params=["kl", "tiny with GroupNorm"])
def vae(request: pytest.FixtureRequest, small_vae: VAE) -> VAE:
    if request.param == "kl":
        return small_vae
    torch.manual_seed(1)
    tiny = AutoencoderTiny(latent_channels=8, midblock_gn=True)
    loaded = load_model(tiny.state_dict(), dtype=torch.float32)
    return VAE(loaded, LocalHost(), device=CPU, dtype=torch.float32, output_device=CPU)


def hard_latents(batch: int, channels: int, height: int, width: int) -> Tensor:
    """A gradient, noise and one outlier: white noise alone hides wrong statistics."""
    z = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3))
    z += torch.linspace(-3, 3, width) + torch.linspace(-2, 4, height)[:, None]
    z[0, 0, 0, -1] = 25.0
    return z


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 1, 1), (1, 1, 9), (2, 5, 7), (3, 8, 8), (5, 3, 2), (1, 17, 11)]
)
def test_exact_decode_equals_the_untiled_module(vae: VAE, batch: int, height: int, width: int) -> None:
    z = hard_latents(batch, vae.latent_channels, height, width)
    model: Any = vae.first_stage_model
    with torch.inference_mode():
        result = model.decode(z)
    raw = result[0] if isinstance(model, AutoencoderTiny) else result
    assert_exact(vae.decode(z, "exact"), ((raw + 1) / 2).clamp(0, 1).movedim(1, -1))


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 40, 56), (3, 64, 64), (5, 24, 16), (1, 136, 88)])
def test_exact_encode_equals_the_untiled_module(vae: VAE, batch: int, height: int, width: int) -> None:
    x = torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(4))
    x = (x * 0.3 + torch.linspace(0, 0.7, width)[:, None]).clamp(0, 1)
    model: Any = vae.first_stage_model
    pixels = x.movedim(-1, 1) * 2 - 1
    with torch.inference_mode():
        expected = model.encode(pixels)[0] if isinstance(model, AutoencoderTiny) else model.encode(pixels)
    assert_exact(vae.encode(x, "exact"), expected)

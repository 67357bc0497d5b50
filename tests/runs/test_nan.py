"""NaN: told whether it came in or was born in the VAE, and in the latter case cured where the dtype is the cause."""

from typing import Any

import pytest
import torch
from exact_vae.model_management.exact_vae import make_exact

pytestmark = pytest.mark.usefixtures("one_thread")


def overflowing(vae: Any) -> None:
    """Weights that float16 holds and whose products it does not."""
    weight = vae.first_stage_model.decoder.conv_in.weight
    weight.data.mul_(30_000 / float(weight.abs().max()))


def test_what_overflows_in_float16_is_repeated_in_float32(stub_host: Any) -> None:
    vae = stub_host.make_vae(dtype=torch.float16)
    overflowing(vae)
    made = make_exact(vae)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    assert vae.decode(z).isnan().any()
    image = made.decode(z)
    assert not image.isnan().any()
    vae.first_stage_model.float()
    vae.vae_dtype = torch.float32
    torch.testing.assert_close(image, vae.decode(z).to(image.dtype), rtol=0, atol=2e-5)
    (warning,) = made.last_report.warnings  # the second image runs in float32 from the start
    assert "NaN was born in the VAE in float16: repeated in float32" in warning
    assert made.last_report.as_dict()["dtype"] == "float32"
    assert " · overflow, repeated in float32 · " in made.last_report.as_dict()["line"]  # what a node shows


def test_nan_that_comes_in_is_not_the_vae_s_fault(stub_host: Any) -> None:
    vae = stub_host.make_vae(dtype=torch.bfloat16)
    made, z = make_exact(vae), torch.randn(2, 4, 8, 8)
    z[1, 0, 3, 3] = float("nan")
    image = made.decode(z)
    assert image[1].isnan().any()
    assert not image[0].isnan().any()
    (warning,) = made.last_report.warnings
    assert warning.startswith("decode of image 2 of 2: the latent already holds NaN")
    assert made.last_report.as_dict()["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_broken_weights_are_named(stub_host: Any, dtype: torch.dtype) -> None:
    vae = stub_host.make_vae(dtype=dtype)
    vae.first_stage_model.decoder.conv_out.bias.data[0] = float("nan")
    made = make_exact(vae)
    assert made.decode(torch.randn(1, 4, 4, 4)).isnan().any()
    assert "weights" in made.last_report.warnings[-1]

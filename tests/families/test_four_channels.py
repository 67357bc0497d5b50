"""VAEs whose images have alpha: every node keeps it, and the host's fill in what is missing as the host does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, VAE, load_vae, save
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.model_management.masks import grey_out
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import random_model
from exact_vae.tests.families.test_wan import ROW
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients")
MASK = torch.zeros(1, 48, 40)


def model(out_channels: int = 4) -> AutoencoderKL:
    options = {
        "ch": 32,
        "out_ch": out_channels,
        "in_channels": 4,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "z_channels": 4,
    }
    torch.manual_seed(0)
    return AutoencoderKL(4, ddconfig=options | {"resolution": 32}, sample_posterior=False).eval()


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> VAE:
    path = tmp_path_factory.mktemp("rgba") / "rgba.safetensors"
    save(model(), path)
    return load_vae(path, device="cpu", dtype="float32")


def pixels(channels: int = 4, batch: int = 1) -> Tensor:
    return torch.rand(batch, 48, 40, channels, generator=torch.Generator().manual_seed(3))


def latent(output: dict[str, Any]) -> Tensor:
    return output["result"][0]["samples"]


def whole(pixels: Tensor) -> Tensor:
    """The whole image at once by the plain modules."""
    moments = model().encoder(pixels.movedim(-1, 1) * 2 - 1)
    return model().quant_conv(moments)[:, :4]


@pytest.mark.parametrize("method", ["exact", "blend"])
def test_encode_tiled_keeps_alpha(vae: VAE, method: str) -> None:
    node = NODE_CLASS_MAPPINGS["ExactVAEEncodeTiled"]()
    opaque = pixels()
    opaque[..., 3] = 1.0
    for image in (pixels(), opaque):  # one tile covers the image, so that blend is exact, too
        assert_exact(latent(node.encode(image, vae, 64, 0, method=method)), whole(image))
    assert (whole(pixels()) - whole(opaque)).abs().max() > 0.1


def test_inpaint_keeps_alpha(vae: VAE) -> None:
    node = NODE_CLASS_MAPPINGS["ExactVAEEncodeForInpaint"]()
    assert_exact(latent(node.encode(pixels(), vae, MASK)), whole(pixels()))
    mask = MASK.clone()
    mask[:, 10:30, 8:20] = 1.0
    masked = pixels()
    masked[:, 10:30, 8:20, :3] = 0.5
    assert_exact(latent(node.encode(pixels(), vae, mask)), whole(masked))


def test_alpha_that_goes_in_and_does_not_come_out_is_kept(tmp_path: Path) -> None:
    save(model(3), tmp_path / "rgba_to_rgb.safetensors")
    vae = load_vae(tmp_path / "rgba_to_rgb.safetensors", device="cpu", dtype="float32")
    for name, more in (("ExactVAEEncode", ()), ("ExactVAEEncodeTiled", ()), ("ExactVAEEncodeForInpaint", (MASK,))):
        assert_exact(latent(NODE_CLASS_MAPPINGS[name]().encode(pixels(), vae, *more)), vae.encode(pixels()))


@pytest.mark.parametrize(("batch", "masks"), [(2, 1), (1, 2), (2, 2)])
def test_what_is_masked_keeps_its_alpha_in_every_batch(batch: int, masks: int) -> None:
    found, _ = grey_out(pixels(4, batch), torch.ones(masks, 48, 40), 8)
    assert torch.all(found[..., :3] == 0.5)
    assert torch.equal(found[..., 3], pixels(4, batch)[..., 3].expand(len(found), -1, -1))


def test_three_channels_into_four_are_refused_where_nothing_says_what_alpha_is(vae: VAE) -> None:
    for name in ("ExactVAEEncode", "ExactVAEEncodeTiled"):
        with pytest.raises(InputError, match="convert the image to 4 channels"):
            NODE_CLASS_MAPPINGS[name]().encode(pixels(3), vae)


def test_alpha_is_cut_off_for_a_vae_without(small_vae: VAE) -> None:
    expected = small_vae.encode(pixels()[..., :3])
    for name in ("ExactVAEEncode", "ExactVAEEncodeTiled"):
        assert_exact(latent(NODE_CLASS_MAPPINGS[name]().encode(pixels(), small_vae)), expected)
    assert_exact(latent(NODE_CLASS_MAPPINGS["ExactVAEEncodeForInpaint"]().encode(pixels(), small_vae, MASK)), expected)


# -- VAEs of the host -------------------------------------------------------------------------------------------------


def host_vae(host: Any) -> Any:
    levels = LevelsConfig(ch=32, widths=(32, 64), num_res_blocks=1)
    vae = host.make_vae()
    vae.take_model(model(), torch.float32, KLConfig(4, 4, levels, levels, in_channels=4, out_ch=4))
    vae.output_channels = 4
    return vae


@pytest.mark.parametrize("value", [1.0, 0.25])
def test_the_host_s_fill_value_is_alpha_in_every_node(new_host: Any, value: float) -> None:
    vae = host_vae(new_host)
    vae.pad_channel_value = value
    filled = torch.cat([pixels(3), torch.full((1, 48, 40, 1), value)], dim=-1)
    expected = vae.encode(pixels(3))
    assert_exact(expected, whole(filled))
    made = make_exact(vae)
    assert_exact(made.encode(pixels(3)), expected)
    assert_exact(made.encode_tiled(pixels(3), 32, 32, 0), expected)
    for name in ("ExactVAEEncode", "ExactVAEEncodeTiled"):
        assert_exact(latent(NODE_CLASS_MAPPINGS[name]().encode(pixels(3), vae)), expected)
    inpaint = NODE_CLASS_MAPPINGS["ExactVAEEncodeForInpaint"]()
    assert_exact(latent(inpaint.encode(pixels(3), vae, MASK)), expected)
    assert_exact(latent(inpaint.encode(pixels(4), vae, MASK)), vae.encode(pixels(4)))
    assert made.last_report.exact


def test_a_vae_of_the_host_that_fills_nothing_in_says_so(new_host: Any) -> None:
    made = make_exact(host_vae(new_host))
    with pytest.raises((RuntimeError, InputError)):
        made.encode(pixels(3))
    assert made.last_report.reason == "expected 4 channels, got 3"


def test_qwen_image_layered_of_ours_takes_pictures_without_alpha_as_opaque(tmp_path: Path) -> None:
    save(
        random_model(replace(ROW, config=replace(ROW.config, in_channels=4, out_channels=4))),
        tmp_path / "layered.safetensors",
    )
    vae = load_vae(tmp_path / "layered.safetensors", device="cpu", dtype="float32")
    opaque = torch.cat([pixels(3), torch.ones(1, 48, 40, 1)], dim=-1)
    assert_exact(vae.encode(pixels(3)), vae.encode(opaque))
    assert (vae.encode(pixels(3)) - vae.encode(pixels(4))).abs().max() > 0.01

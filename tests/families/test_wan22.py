"""The Wan 2.2 autoencoder: its files, its pictures, what is told of it, and the host's own classes."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import ROWS, Row, levels, random_model, wan22
from exact_vae.tests.families.test_qwen_image_21_host import WanVAE as HostWan
from exact_vae.tests.families.test_wan import noise
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.table import FAMILIES, decoder_of, encoder_of, family_knowing
from exact_vae.vae_model.families.wan22 import Wan22Config, Wan22VAE
from exact_vae.vae_model.kernels import plain
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

Z = 6
OVER_TIME = {"published": (False, True, True), "other steps": (True, False, True)}
"""With the second, widths change where frames do, so that it shows which of two frames a shortcut's channel is of."""


@cache
def model(steps: str = "published") -> Any:
    encoder, decoder = levels(8, 16, 32, 32, blocks=2), levels(4, 8, 16, 16, blocks=2)
    return random_model(Row("wan22", wan22(Z, encoder, decoder, over_time=OVER_TIME[steps]), Z, 16)).double()


@cache
def theirs(steps: str = "published") -> Any:
    """diffusers' model of the same weights, which upsamples in float32 unless it is told not to."""
    diffusers: Any = pytest.importorskip("diffusers")
    made = diffusers.AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=4,
        z_dim=Z,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        temperal_downsample=list(OVER_TIME[steps]),
    )
    made.load_state_dict(to_layout(model(steps), "diffusers"))
    for layer in made.modules():
        if type(layer).__name__ == "WanUpsample":
            layer.forward = lambda x: functional.interpolate(x, scale_factor=2, mode="nearest-exact")
    return made.double().eval().requires_grad_(False)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_diffusers_folder_goes_there_and_back(tmp_path: Path) -> None:
    vae = theirs()
    vae.save_pretrained(tmp_path / "theirs")
    convert_vae([str(tmp_path / "theirs")], tmp_path / "ours", "diffusers")
    again = type(vae).from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert again.state_dict().keys() == vae.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], tensor.float()) for key, tensor in vae.float().state_dict().items())
    assert all(again.config[name] == vae.config[name] for name in vae.config if not name.startswith("_"))
    theirs.cache_clear()
    text = (tmp_path / "ours" / "config.json").read_text().replace('"patch_size": 2', '"patch_size": 4')
    (tmp_path / "ours" / "config.json").write_text(text)
    with pytest.raises(VAEFileError, match=r"expected patch_size 2 in its configuration, got 4"):
        load_model(tmp_path / "ours")


def test_a_folder_made_of_an_original_tells_the_numbers_of_its_latents(tmp_path: Path) -> None:
    """The class takes Wan 2.1's, of sixteen channels, where it is told none."""
    save(random_model(ROWS["Wan 2.2"]), tmp_path / "vae.safetensors", layout="wan")
    convert_vae([str(tmp_path / "vae.safetensors")], tmp_path / "folder", "diffusers")
    fields = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (len(fields["latents_mean"]), fields["latents_mean"][:2], fields["latents_std"][-1]) == (
        *(48, [-0.2289, -0.0052]),
        0.7744,
    )
    assert (fields["_class_name"], fields["scale_factor_spatial"]) == ("AutoencoderKLWan", 16)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_file(half: str) -> None:
    config = wan22(Z, model().config.encoder, model().config.decoder)
    halves = (config.encoder, None) if half == "encoder" else (None, config.decoder)
    part = Wan22VAE(Wan22Config(Z, *halves, config.over_time)).double()
    conv = "conv1." if half == "encoder" else "conv2."
    part.load_state_dict({k: v for k, v in model().state_dict().items() if k.startswith((half, conv))})
    for layout in ("wan", "diffusers"):
        loaded: Any = load_model(to_layout(part, layout))
        assert (loaded.family, loaded.config) == ("wan22", Wan22Config(Z, *halves, config.over_time))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"decoder.conv1.bias": None}, "missing decoder.conv1.bias"),
        ({"decoder.conv1.weight": None, "encoder.conv1.weight": None}, "missing decoder.conv1.weight"),
        ({"decoder.upsamples.0.upsamples.3.time_conv.bias": None}, "missing decoder.upsamples.0.upsamples.3.time_conv"),
        ({"decoder.upsamples.1.upsamples.9.gamma": torch.zeros(1)}, r"unknown decoder.upsamples.1.upsamples.9.gamma"),
    ],
)
def test_damaged_files_are_refused(changes: dict[str, Tensor | None], text: str) -> None:
    stored = to_layout(model(), "wan") | changes
    with pytest.raises(VAEFileError, match=rf"expected a whole Wan 2\.2 autoencoder in wan layout, .*{text}"):
        load_model({key: tensor for key, tensor in stored.items() if tensor is not None})


def test_what_info_says(tmp_path: Path) -> None:
    save(random_model(ROWS["Wan 2.2"]), tmp_path / "vae.safetensors")
    facts = describe_vae([str(tmp_path / "vae.safetensors")])
    assert (facts["family"], facts["latent channels"]) == ("Wan 2.2 autoencoder", 48)
    assert facts["pixels per latent cell"] == 16
    assert facts["latents"] == ("(batch, 48, (frames - 1) / 4 + 1, height / 16, width / 16), raw mean of the posterior")
    assert str(facts["scale and shift"]).startswith("per channel, means [-0.2289, -0.0052, -0.1323,")
    assert facts["not told by the weights"] == "nothing that is needed"


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", OVER_TIME)
def test_pictures_equal_diffusers(steps: str) -> None:
    z, x = noise(2, Z, 3, 2, dtype=torch.float64), noise(2, 3, 32, 48, dtype=torch.float64)
    assert_exact(model(steps).decode(z).clamp(-1, 1), theirs(steps).decode(z[:, :, None]).sample[:, :, 0])
    assert_exact(model(steps).encode(x), theirs(steps).encode(x[:, :, None]).latent_dist.mode()[:, :, 0])


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
    {"device_share": 0.4, "stream_attention": True},
]


@pytest.mark.parametrize("steps", OVER_TIME)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_pictures_in_every_schedule_strip_height_and_odd_size(direction: str, steps: str) -> None:
    half = decoder_of(model(steps)) if direction == "decode" else encoder_of(model(steps), Z)
    f = 1 if direction == "decode" else 16
    for height, width in ((1, 1), (5, 3)):
        x = noise(1, half.program.in_channels, height * f, width * f, dtype=torch.float64)
        expected = getattr(model(steps), direction)(x)
        for options in SCHEDULES:
            for strip_rows in (1, 3, 1000):
                out = half.finish(run(half.program, uniform(half.program.level_count, strip_rows, **options), x))
                assert_exact(out, expected)


# -- the host ----------------------------------------------------------------------------------------------------------


def host_of(ours: Any) -> Any:
    """The host's class; older ones have no word for patches."""
    made = HostWan(ours, 2)
    del made.patch_size
    return made


def test_the_hosts_model_is_read() -> None:
    host, z = host_of(model()), noise(1, Z, 3, 2, dtype=torch.float64)
    assert family_knowing(host) is FAMILIES["wan22"]
    assert family_knowing(HostWan(model(), 2)) is FAMILIES["wan22"]
    assert family_knowing(HostWan(model(), 4)) is FAMILIES["wan"]  # and read as nothing that is known
    assert_exact(run(decoder_of(host).program, uniform(4, 3), z), model().decode(z))


def test_the_hosts_clips_are_exact(stub_host: Any) -> None:
    from exact_vae.model_management.exact_vae import make_exact

    ours = copy.deepcopy(model()).float()
    vae = stub_host.make_vae()
    vae.take_model(host_of(ours), torch.float32, ours.config)
    vae.latent_dim, vae.upscale_ratio = 3, (lambda frames: max(0, 4 * frames - 3), 16, 16)
    vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 16, 16)
    made, z = make_exact(vae), noise(1, Z, 2, 3, 2)
    pixels = torch.rand(5, 37, 50, 3, generator=torch.Generator().manual_seed(1))
    images, latents = vae.decode(z), vae.encode(pixels)
    assert (images.shape, latents.shape) == ((1, 5, 48, 32, 3), (1, Z, 2, 2, 3))
    stub_host.forget()
    for expected, call in ((images, lambda: made.decode(z)), (latents, lambda: made.encode(pixels))):
        assert_exact(call(), expected)
        assert (made.last_report.exact, made.last_report.reason) == (True, None)
    assert stub_host.calls == []  # none of the host's own methods ran


def test_a_model_of_diffusers_is_taken() -> None:
    vae, z = copy.deepcopy(theirs()).float(), noise(1, Z, 2, 3, 2)
    expected = ((vae.decode(z).sample + 1) / 2).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(load_vae(vae, device="cpu", dtype="float32").decode(z), expected, rtol=0, atol=2e-5)


def test_weights_of_upsamples_are_made_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are the same for odd rows, too: made again beside standing windows, no plan would count it."""
    made: list[int] = []
    arrange = plain.PlainUpsample.arrange

    def counted(self: Any, memory: Any, weight: Tensor, odd: bool) -> Any:
        made.append(weight.data_ptr())
        return arrange(self, memory, weight, odd)

    monkeypatch.setattr(plain.PlainUpsample, "arrange", counted)
    program, z = decoder_of(model()).program, noise(1, Z, 7, 5, dtype=torch.float64)
    stores = {"store_blocks": False, "store_hidden": False, "store_enlarged": False, "store_ends": False}
    for rows in range(3, 12):
        made.clear()
        assert_exact(run(program, uniform(program.level_count, rows, **stores), z), model().decode(z))
        assert len(made) == len({*made}) == 3

"""The Flux.2 autoencoder: equal to diffusers', latents as ComfyUI has them, and known in the host's class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.tests.families.test_diffusers_equality import CLOSE, randomise
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.schedule import uniform as uniform_schedule
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from exact_vae.vae_model.families.ldm.flux2 import AutoencoderFlux2
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients")

ROW = ROWS["Flux.2 small decoder"]
GROUPS = hints(ROW.config)


@pytest.fixture
def model() -> Any:
    return random_model(ROW)


# -- diffusers ---------------------------------------------------------------------------------------------------------


def theirs(**options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    generator = torch.Generator().manual_seed(5)
    values: dict[str, Any] = {
        "block_out_channels": (16, 32, 32, 32),
        "latent_channels": 8,
        "norm_num_groups": 8,
        "layers_per_block": 1,
    }
    model = diffusers.AutoencoderKLFlux2(**values | options)
    randomise(model, generator)
    model.bn.running_mean.copy_(torch.randn(model.bn.num_features, generator=generator))
    model.bn.running_var.copy_(torch.rand(model.bn.num_features, generator=generator) + 0.3)
    return model.eval()


def squares(z: Tensor) -> Tensor:
    """(B, c, 2h, 2w) -> (B, 4c, h, w): of each channel the cells (0, 0), (0, 1), (1, 0) and (1, 1) of every square."""
    return torch.stack([z[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)], dim=2).flatten(1, 2)


def cells(z: Tensor) -> Tensor:
    """The inverse."""
    out = torch.empty(z.shape[0], z.shape[1] // 4, 2 * z.shape[2], 2 * z.shape[3])
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        out[:, :, y::2, x::2] = z[:, 2 * y + x :: 4]
    return out


def pipeline_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """(mean, deviation) as diffusers' pipelines read them: neither squares nor these are part of its autoencoder."""
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return vae.bn.running_mean.view(1, -1, 1, 1), deviation


OPTIONS: list[dict[str, Any]] = [
    {},
    {"decoder_block_out_channels": (8, 16, 16, 24)},
    {"batch_norm_eps": 0.02},
    {"mid_block_add_attention": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_equals_diffusers_and_its_pipeline(layout: str, options: dict[str, Any]) -> None:
    vae = theirs(**options)
    config = {"norm_num_groups": 8, "batch_norm_eps": vae.config.batch_norm_eps}
    loaded = load_model(vae.state_dict(), config=config)
    if layout == "ldm":  # converted, and read again
        loaded = load_model(to_layout(loaded.model, "ldm"), config=config)
    assert (loaded.family, loaded.layouts) == ("flux2", (layout,))
    ours: Any = loaded.model
    mean, deviation = pipeline_statistics(vae)
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(2, 3, 48, 32, generator=generator) * 2 - 1
    expected = (squares(vae.encode(x).latent_dist.mode()) - mean) / deviation
    assert expected.std() > 0.1  # A comparison of zeros would show nothing.
    torch.testing.assert_close(ours.encode(x), expected, **CLOSE)
    z = torch.randn(2, 32, 3, 2, generator=generator)
    expected = vae.decode(cells(z * deviation + mean)).sample
    torch.testing.assert_close(ours.decode(z), expected, **CLOSE)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_diffusers_computes_the_same_with_what_we_write(options: dict[str, Any]) -> None:
    source, target = theirs(**options), theirs(**options)
    ours: Any = load_model(source.state_dict(), config={"norm_num_groups": 8}).model
    written = to_layout(ours, "diffusers")
    assert written.keys() == source.state_dict().keys()
    for tensor in (*target.parameters(), *target.buffers()):
        tensor.zero_()
    target.load_state_dict(written, strict=True)
    z = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(7))
    assert torch.equal(target.decode(z).sample, source.decode(z).sample)


def test_a_diffusers_folder(tmp_path: Path) -> None:
    vae = theirs(batch_norm_eps=0.05)
    vae.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    config: Any = loaded.config
    assert (loaded.family, config.num_groups, config.batch_norm_eps) == ("flux2", 8, 0.05)
    text = (tmp_path / "config.json").read_text().replace('"patch_size": [\n    2,\n    2\n  ]', '"patch_size": [1, 1]')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(VAEFileError, match=r"expected patch_size \[2, 2\] in its configuration, got \[1, 1\]"):
        load_model(tmp_path)


# -- files -------------------------------------------------------------------------------------------------------------


def test_quant_convolutions_may_be_nested_or_not(model: Any) -> None:
    stored = to_layout(model, "ldm")
    assert stored["encoder.quant_conv.weight"].shape == (64, 64, 1, 1)
    assert stored["decoder.post_quant_conv.weight"].shape == (32, 32, 1, 1)
    flat = {key.replace("encoder.q", "q").replace("decoder.post", "post"): tensor for key, tensor in stored.items()}
    assert "quant_conv.weight" in flat
    for source in (stored, flat):
        loaded = load_model(source, config=GROUPS).model.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


def test_the_counter_of_batches_is_optional_and_stays_an_integer(model: Any, tmp_path: Path) -> None:
    stored = to_layout(model, "ldm")
    assert stored.pop("bn.num_batches_tracked") == 1234
    loaded = load_model(stored, config=GROUPS).model.state_dict()
    assert loaded["bn.num_batches_tracked"] == 0
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    state = load_model(tmp_path / "half.safetensors", dtype=torch.bfloat16).model.state_dict()
    assert state["bn.num_batches_tracked"].dtype == torch.int64
    assert state["bn.running_mean"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bn.running_var": None}, "missing bn.running_var"),
        ({"bn.running_mean": torch.zeros(64)}, r"bn.running_mean has shape \(64,\) instead of \(128,\)"),
        ({"bn.weight": torch.zeros(128)}, "unknown bn.weight"),
    ],
)
def test_damaged_files_are_refused(model: Any, changes: dict[str, Tensor | None], text: str) -> None:
    stored = to_layout(model, "ldm") | changes
    with pytest.raises(VAEFileError, match=rf"expected a whole Flux\.2 autoencoder in ldm layout, found .*{text}"):
        load_model({key: tensor for key, tensor in stored.items() if tensor is not None}, config=GROUPS)


# -- the latent convention ---------------------------------------------------------------------------------------------


def test_channels_are_cells_of_squares(model: Any) -> None:
    z = torch.arange(2 * 32 * 4 * 6, dtype=torch.float32).reshape(2, 32, 4, 6)
    packed = model.pack(z) * torch.sqrt(model.bn.running_var + model.bn.eps)[:, None, None]
    packed = packed + model.bn.running_mean[:, None, None]
    for c, y, x in ((0, 0, 0), (5, 1, 0), (31, 0, 1), (17, 1, 1)):
        torch.testing.assert_close(packed[:, 4 * c + 2 * y + x], z[:, c, y::2, x::2], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(model.unpack(model.pack(z)), z, rtol=1e-5, atol=1e-3)


def test_the_statistics_are_the_stored_ones_even_in_training(model: Any) -> None:
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    expected, before = model.encode(x), model.bn.running_mean.clone()
    model.bn.train()
    assert torch.equal(model.encode(x), expected)
    assert torch.equal(model.bn.running_mean, before)


def test_encode_has_its_parents_forms(model: Any) -> None:
    x = torch.rand(1, 3, 48, 33) * 2 - 1
    moments, log = model.encode(x, unregularized=True)
    assert (moments.shape, log) == ((1, 64, 6, 4), {})
    z, log = model.encode(x, return_reg_log=True)
    assert log["kl_loss"].ndim == 0
    assert torch.equal(z, model.pack(moments[:, :32]))
    assert model(x)[1].shape == (1, 3, 48, 32)


@pytest.mark.parametrize("method", ["untiled", "exact"])
def test_vae(model: Any, method: str) -> None:
    vae = load_vae(to_layout(model, "ldm"), device="cpu", dtype="float32", config=GROUPS)
    pixels = torch.rand(2, 70, 50, 3)
    latent = vae.encode(pixels, method)
    assert latent.shape == (2, 128, 4, 3)
    torch.testing.assert_close(latent, model.encode(pixels[:, 3:67, 1:49].movedim(-1, 1) * 2 - 1), rtol=0, atol=1e-4)
    images = vae.decode(latent, method)
    expected = ((model.decode(latent) + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_every_strip_height_and_border(model: Any, mode: str) -> None:
    model = model.double()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1):
            layer.padding_mode = mode
    z = torch.randn(1, 128, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = model.decode(z)
    half = decoder_of(model)
    for strip_rows in range(1, 9):
        for share in (1.0, 0.0):
            plan = uniform_schedule(half.program.level_count, strip_rows, device_share=share, store_hidden=share > 0)
            torch.testing.assert_close(run(half.program, plan, z), expected, rtol=0, atol=1e-11)
    if mode != "zeros":
        return  # strided convolutions of the encoder have borders of their own
    x = torch.rand(1, 3, 80, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    expected, half = model.encode(x), encoder_of(model, 128)
    for strip_rows in range(1, 9):
        plan = uniform_schedule(half.program.level_count, strip_rows)
        torch.testing.assert_close(run(half.program, plan, x), expected, rtol=0, atol=1e-11)


class HostKL(AutoencoderKL):
    """The host's class for Flux.2: AutoencoderKL with `bn`, and its own words for squares and eps."""

    def __init__(self, ours: Any) -> None:
        nn.Module.__init__(self)
        self.ours = [ours]
        for name in ("encoder", "decoder", "quant_conv", "post_quant_conv", "regularization"):
            setattr(self, name, getattr(ours, name))
        self.bn, self.ps, self.bn_eps = ours.bn, [2, 2], 1e-4


HostKL.__name__ = "AutoencoderKL"


def test_the_hosts_class_is_known(model: Any) -> None:
    host: Any = HostKL(model)
    z = torch.randn(1, 128, 2, 3, generator=torch.Generator().manual_seed(3))
    half = decoder_of(host)
    plan = uniform_schedule(half.program.level_count, 4)
    torch.testing.assert_close(run(half.program, plan, z), model.decode(z), rtol=0, atol=1e-4)
    assert encoder_of(host, 128).program.out_channels == 128


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("ps", [4, 4], "got .4, 4. and 0.0001"),
        ("ps", None, "got None and 0.0001"),
        ("bn_eps", 1e-3, "got .2, 2. and 0.001"),
        ("bn", nn.BatchNorm2d(128), "expected a BatchNorm of stored statistics"),
        ("bn", nn.BatchNorm2d(64, affine=False), "expected 128 channels, got 64"),
        ("bn", nn.Identity(), "expected a BatchNorm of stored statistics, got Identity"),
    ],
)
def test_what_the_host_says_otherwise_is_refused(model: Any, attribute: str, value: Any, text: str) -> None:
    host: Any = HostKL(model)
    setattr(host, attribute, value)
    for make in (lambda: decoder_of(host), lambda: encoder_of(host, 128)):
        with pytest.raises(UnsupportedModule, match=text):
            make()


def test_the_class_is_its_own(model: Any) -> None:
    assert type(model) is AutoencoderFlux2

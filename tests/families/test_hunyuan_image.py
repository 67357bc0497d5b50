"""The HunyuanImage 2.1 autoencoder: equal to diffusers', read as the host has it, exact in strips under any budget."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.exact.test_planner_prediction import AMPLE, META, assert_predicted
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.exactness import TOLERANCE, assert_exact
from exact_vae.tests.families.table import ROWS, hunyuan_image, random_model
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import MemoryBudgetError, VAEFileError
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.hunyuan_image.config import HunyuanImageConfig
from exact_vae.vae_model.families.hunyuan_image.model import HunyuanImageVAE
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

ROW = ROWS["HunyuanImage 2.1"]
NARROW = hunyuan_image(16, 32, 64, 128)
"""Of three levels, with the shortcuts of all kinds: of equal widths, of widths that halve, of widths that double."""


@pytest.fixture
def model() -> Any:
    return random_model(ROW)


@cache
def narrow(dtype: torch.dtype = torch.float32) -> Any:
    return random_model(type(ROW)("hunyuan_image", NARROW, 16, 4)).to(dtype)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise on slopes, and an outlier: white noise alone hides wrong statistics and mistakes at borders."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x += torch.linspace(-1, 1, shape[-1], dtype=dtype) + torch.linspace(-2, 1, shape[-2], dtype=dtype)[:, None]
    x[0, 0, 0, -1] = 10.0
    return x


# -- diffusers ---------------------------------------------------------------------------------------------------------

WIDTHS = [(32, 64, 64, 128), (64, 32, 32)]


def theirs(widths: tuple[int, ...], **options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    name = "AutoencoderKLHunyuanImage"
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    values = {"in_channels": 3, "out_channels": 3, "latent_channels": 16, "sample_size": 64, "layers_per_block": 2}
    values |= {"block_out_channels": widths, "spatial_compression_ratio": 2 ** (len(widths) - 1), **options}
    model = getattr(diffusers, name)(**values).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for tensor in model.parameters():
        scale = 0.2 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight += 1
    return model


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_equals_diffusers(widths: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    vae = theirs(widths).to(dtype)
    loaded = load_model(vae.state_dict())
    if layout == "ldm":  # converted, and read again
        loaded = load_model(to_layout(loaded.model, "ldm"))
    assert (loaded.family, loaded.layouts) == ("hunyuan_image", (layout,))
    ours: Any = loaded.model
    factor, truth = loaded.config.factor, copy.deepcopy(vae).double()
    x, z = noise(2, 3, 5 * factor, 3 * factor, dtype=dtype), noise(2, 16, 5, 3, dtype=dtype)
    latent, image = truth.encode(x.double()).latent_dist.mode(), truth.decode(z.double()).sample
    for method, given, expected in (("encode", x, latent), ("decode", z, image)):
        assert expected.std() > 0.1  # A comparison of zeros would show nothing.
        assert_exact(getattr(ours, method)(given), expected.to(dtype), expected)
    assert_exact(run(decoder_of(ours).program, uniform(len(widths), 3), z), image.to(dtype), image)
    half = encoder_of(ours, 16)
    assert_exact(half.finish(run(half.program, uniform(len(widths), 1), x)), latent.to(dtype), latent)


def test_diffusers_computes_the_same_with_what_we_write() -> None:
    source, target = theirs(WIDTHS[0]), theirs(WIDTHS[0])
    written = to_layout(load_model(to_layout(load_model(source.state_dict()).model, "ldm")).model, "diffusers")
    assert written.keys() == source.state_dict().keys()
    for tensor in target.parameters():
        tensor.zero_()
    target.load_state_dict(written, strict=True)
    z = noise(1, 16, 3, 2)
    assert torch.equal(target.decode(z).sample, source.decode(z).sample)


def test_a_model_of_diffusers_and_its_folder(tmp_path: Path) -> None:
    vae = theirs(WIDTHS[0], scaling_factor=0.5)
    z = noise(1, 16, 3, 2)
    expected = ((vae.decode(z).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(load_vae(vae, device="cpu", dtype="float32").decode(z), expected, rtol=0, atol=2e-5)
    vae.save_pretrained(tmp_path / "theirs")
    convert_vae([str(tmp_path / "theirs")], tmp_path / "ours", "diffusers")
    again = type(vae).from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in vae.state_dict().items())
    for field, value in vae.config.items():
        pair = [list(one) if isinstance(one, (list, tuple)) else one for one in (again.config.get(field), value)]
        assert field.startswith("_") or pair[0] == pair[1], field


def test_shortcuts_of_other_channels_are_refused() -> None:
    state = theirs(WIDTHS[1]).state_dict()
    with pytest.raises(VAEFileError, match=r"expected upsample_match_channel True in its configuration, got False"):
        load_model(state, config={"upsample_match_channel": False})


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ROW.layouts)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_file(model: Any, half: str, layout: str) -> None:
    parts = (ROW.config.encoder, None) if half == "encoder" else (None, ROW.config.decoder)  # type: ignore[attr-defined]
    config = HunyuanImageConfig(32, *parts)
    part = HunyuanImageVAE(config)
    part.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if key.startswith(half)})
    loaded: Any = load_model(to_layout(part, layout))
    assert (loaded.family, loaded.config) == ("hunyuan_image", config)
    x = noise(1, 32, 2, 1) if half == "decoder" else noise(1, 3, 32, 64)
    direction, other = ("decode", "encode") if half == "decoder" else ("encode", "decode")
    assert torch.equal(getattr(loaded.model, direction)(x), getattr(model, direction)(x))
    with pytest.raises(RuntimeError, match="expected a model with"):
        getattr(loaded.model, other)(x)


@pytest.mark.parametrize("layout", ROW.layouts)
def test_damaged_files_are_refused(model: Any, layout: str) -> None:
    stored = to_layout(model, layout)
    lacking = {key: tensor for key, tensor in stored.items() if key != "decoder.conv_out.bias"}
    more = stored | {"decoder.mid.attn_1.extra.weight": torch.zeros(1)}
    for damaged, text in ((lacking, "missing decoder.conv_out.bias"), (more, "unknown decoder.mid.attn_1.extra")):
        with pytest.raises(VAEFileError, match=rf"whole HunyuanImage 2\.1 autoencoder in {layout} layout, .*{text}"):
            load_model(damaged)


def test_what_info_says(tmp_path: Path) -> None:
    """At the width of the published file, whose latents have one known user."""
    levels = LevelsConfig(32, (32, 32, 32, 32, 32, 128), 2)
    save(HunyuanImageVAE(HunyuanImageConfig(64, levels, levels)), tmp_path / "vae.safetensors")
    facts = describe_vae([str(tmp_path / "vae.safetensors")])
    assert (facts["family"], facts["latent channels"], facts["pixels per latent cell"]) == (
        "HunyuanImage 2.1 autoencoder", 64, 32,
    )  # fmt: skip
    assert facts["scale and shift"] == "0.75289 and 0, of HunyuanImage 2.1"
    assert facts["not told by the weights"] == "nothing that is needed"


# -- the engine --------------------------------------------------------------------------------------------------------

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"store_hidden": False, "store_enlarged": False},
    {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
    {"device_share": 0.4, "stream_attention": True, "store_enlarged": False},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_every_schedule_strip_height_and_odd_size(direction: str, dtype: torch.dtype) -> None:
    model, double = narrow(dtype), copy.deepcopy(narrow(dtype)).double()
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 16)
    f = 1 if direction == "decode" else 4
    schedules = SCHEDULES if dtype == torch.float64 else SCHEDULES[::2]
    for batch, height, width in ((1, 1, 1), (2, 7, 5)):
        x = noise(batch, half.program.in_channels, height * f, width * f, dtype=dtype)
        expected = getattr(double, direction)(x.double())
        for options in schedules:
            for strip_rows in (1, 3, 1000):
                out = half.finish(run(half.program, uniform(3, strip_rows, **options), x))
                assert_exact(out, expected.to(dtype), expected)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_seamless_borders(direction: str) -> None:
    model = copy.deepcopy(narrow()).double()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding_mode = "circular"
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 16)
    f = 1 if direction == "decode" else 4
    x = noise(1, half.program.in_channels, 5 * f, 3 * f, dtype=torch.float64)
    for options in SCHEDULES:
        out = half.finish(run(half.program, uniform(3, 2, **options), x))
        assert_exact(out, getattr(model, direction)(x))


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_err_no_more_than_untiled(direction: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(narrow()).to(dtype)
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 16)
    x = (noise(1, 16, 12, 10) if direction == "decode" else noise(1, 3, 48, 40)).to(dtype)
    untiled = getattr(model, direction)(x)
    exact = half.finish(run(half.program, uniform(3, 8), x))
    assert_exact(exact, untiled, getattr(model.double(), direction)(x.double()))


SHARES = [1.0, 0.5, 0.3, 0.2, 0.1]
"""Of the untiled peak."""


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_five_budgets_down_to_a_tenth_of_the_untiled_peak(direction: str) -> None:
    model = random_model(type(ROW)("hunyuan_image", hunyuan_image(16, 32, 32, 32), 16, 4))
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 16)
    x = noise(1, 16, 48, 40) if direction == "decode" else noise(1, 3, 192, 160)
    with LiveTensorMeter() as meter:
        expected = getattr(model, direction)(x)
    for share in SHARES:
        plan = make_plan(half.program, x.shape, torch.float32, int(share * meter.peak_bytes), AMPLE)
        assert plan.peak_bytes <= share * meter.peak_bytes
        assert_exact(half.finish(run(half.program, plan.schedule, x)), expected)


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_plans_of_the_full_width(direction: str, share: float) -> None:
    """Shares of what a run takes that nothing keeps short, above what the weights of one layer take."""
    levels = LevelsConfig(128, (128, 256, 512, 512, 1024, 1024), 2)
    with META:
        model: Any = HunyuanImageVAE(HunyuanImageConfig(64, levels, levels)).half().eval()
    program = (decoder_of(model) if direction == "decode" else encoder_of(model, 64)).program
    shape = (1, 64, 11, 9) if direction == "decode" else (1, 3, 352, 288)
    resident = make_plan(program, shape, torch.float16, AMPLE, device_type="meta")
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, AMPLE, device_type="meta")
    smallest = refused.value.needed_bytes
    assert smallest is not None
    budget = int(smallest + share * (resident.peak_bytes - smallest))
    assert_predicted(program, make_plan(program, shape, torch.float16, budget, AMPLE, device_type="meta"), shape)

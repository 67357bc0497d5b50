"""The Qwen-Image 2.1 autoencoder: equal to diffusers', images with alpha, exact in strips under any budget."""

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
from exact_vae.tests.families.table import ROWS, Row, levels, qwen_image_21, random_model
from exact_vae.tests.families.test_hunyuan_image import SHARES, noise
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import MemoryBudgetError, VAEFileError
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.qwen_image_21.config import QwenImage21Config
from exact_vae.vae_model.families.qwen_image_21.model import QwenImage21VAE
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from exact_vae.vae_model.kernels import plain

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

ROW = ROWS["Qwen-Image 2.1"]
NARROW = qwen_image_21(6, levels(8, 16, 32, 32, blocks=2), levels(12, 24, 24, 24, blocks=2))
"""Four levels, with every kind of shortcut: widths that double, halve and stay, with and without a frame before."""


@pytest.fixture
def model() -> Any:
    return random_model(ROW)


@cache
def narrow(dtype: torch.dtype = torch.float32) -> Any:
    return random_model(Row("qwen_image_21", NARROW, 6, 8)).to(dtype)


# -- diffusers ---------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [True, False, True], "in_channels": 3, "out_channels": 3},
]
both = pytest.mark.parametrize("options", OPTIONS, ids=str)


def theirs(options: dict[str, Any]) -> Any:
    diffusers = pytest.importorskip("diffusers")
    name = "AutoencoderKLQwenImage21"
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    values = {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 4, "latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}
    model = getattr(diffusers, name)(**values | options).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for key, tensor in model.named_parameters():
        scale = 0.2 if tensor.ndim == 1 or key.endswith("gamma") else tensor[0].numel() ** -0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + key.endswith("gamma"))
    return model


@pytest.fixture
def plain_upsamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs go by way of float32, which float64 would show."""
    name = "diffusers.models.autoencoders.autoencoder_kl_qwenimage21"
    kind = pytest.importorskip(name, reason="a diffusers with Qwen-Image 2.1").QwenImage21Upsample
    monkeypatch.setattr(kind, "forward", torch.nn.Upsample.forward)


@pytest.mark.usefixtures("plain_upsamples")
@pytest.mark.parametrize("dtype", TOLERANCE)
@both
@pytest.mark.parametrize("layout", ["diffusers", "wan"])
def test_equals_diffusers(options: dict[str, Any], layout: str, dtype: torch.dtype) -> None:
    vae = theirs(options).to(dtype)
    loaded = load_model(vae.state_dict())
    if layout == "wan":  # converted, and read again
        loaded = load_model(to_layout(loaded.model, "wan"))
    assert (loaded.family, loaded.layouts) == ("qwen_image_21", (layout,))
    ours: Any = loaded.model
    factor, channels, truth = loaded.config.factor, loaded.config.in_channels, theirs(options).double()
    x, z = noise(2, channels, 3 * factor, 2 * factor, dtype=dtype), noise(2, 4, 5, 3, dtype=dtype)
    latent = truth.encode(x.double()[:, :, None]).latent_dist.mode()[:, :, 0]
    image = truth.decode(z.double()[:, :, None]).sample[:, :, 0]  # diffusers clamps it
    assert min(latent.std(), image.std()) > 0.1  # A comparison of zeros would show nothing.
    assert_exact(ours.encode(x), latent.to(dtype), latent)
    assert_exact(ours.decode(z).clamp(-1, 1), image.to(dtype), image)
    half = encoder_of(ours, 4)
    assert_exact(half.finish(run(half.program, uniform(half.program.level_count, 1), x)), latent.to(dtype), latent)
    program = decoder_of(ours).program
    assert_exact(run(program, uniform(program.level_count, 3), z).clamp(-1, 1), image.to(dtype), image)


@both
def test_diffusers_computes_the_same_with_what_we_write(options: dict[str, Any], tmp_path: Path) -> None:
    vae = theirs(options)
    written = to_layout(load_model(to_layout(load_model(vae.state_dict()).model, "wan")).model, "diffusers")
    assert written.keys() == vae.state_dict().keys()  # with the weights over time, which no image needs
    assert all(torch.equal(written[key], tensor) for key, tensor in vae.state_dict().items())
    vae.save_pretrained(tmp_path / "theirs")
    convert_vae([str(tmp_path / "theirs")], tmp_path / "ours", "diffusers")
    again = type(vae).from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in vae.state_dict().items())
    names = set(vae.config) - {"scale_factor_spatial", "scale_factor_temporal"}  # defaults of five levels, told of four
    assert all(again.config[name] == vae.config[name] for name in names if not name.startswith("_"))


def test_a_model_of_diffusers_is_taken() -> None:
    vae, z = theirs(OPTIONS[0]), noise(1, 4, 3, 2)
    expected = ((vae.decode(z[:, :, None]).sample[:, :, 0] + 1) / 2).movedim(1, -1)
    torch.testing.assert_close(load_vae(vae, device="cpu", dtype="float32").decode(z), expected, rtol=0, atol=2e-5)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ROW.layouts)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_file(model: Any, half: str, layout: str) -> None:
    config: Any = ROW.config
    halves = (config.encoder, None) if half == "encoder" else (None, config.decoder)
    conv = "conv1." if half == "encoder" else "conv2."
    part = QwenImage21VAE(QwenImage21Config(32, *halves, config.over_time))
    part.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith((half, conv))})
    loaded: Any = load_model(to_layout(part, layout))
    assert (loaded.family, loaded.config) == ("qwen_image_21", QwenImage21Config(32, *halves, config.over_time))
    x = noise(1, 32, 4, 3) if half == "decoder" else noise(1, 4, 32, 48)
    direction, other = ("decode", "encode") if half == "decoder" else ("encode", "decode")
    assert torch.equal(getattr(loaded.model, direction)(x), getattr(model, direction)(x))
    with pytest.raises(RuntimeError, match="expected a model with"):
        getattr(loaded.model, other)(x)


def test_wan_2_2_which_has_these_names_is_not_taken_for_it() -> None:
    assert load_model(to_layout(random_model(ROWS["Wan 2.2"]), "wan")).family == "wan22"


def test_damaged_files_are_refused(model: Any) -> None:
    stored = to_layout(model, "wan")
    lacking = {key: tensor for key, tensor in stored.items() if key != "decoder.conv1.bias"}
    shape = stored | {"decoder.head.2.weight": torch.zeros(4, 12, 3, 3, 3)}
    text = r"shape \(4, 12, 3, 3, 3\) instead of \(4, 12, 1, 3, 3\)"
    for damaged, found in ((lacking, "missing decoder.conv1.bias"), (shape, text)):
        with pytest.raises(VAEFileError, match=rf"whole Qwen-Image 2\.1 autoencoder in wan layout, .*{found}"):
            load_model(damaged)


def test_what_info_says_and_what_becomes_of_pictures_without_alpha(tmp_path: Path) -> None:
    half = levels(8, 8, 8, 8, 8, blocks=2)
    save(QwenImage21VAE(qwen_image_21(64, half)), tmp_path / "vae.safetensors")
    facts = describe_vae([str(tmp_path / "vae.safetensors")])
    assert (facts["latent channels"], facts["pixels per latent cell"]) == (64, 16)
    assert str(facts["scale and shift"]).startswith("per channel, means [0.5126, 0.7721, -0.0631,")
    assert facts["not told by the weights"] == "nothing that is needed"
    vae = load_vae(tmp_path / "vae.safetensors", device="cpu", dtype="float32")
    pixels = torch.rand(1, 37, 50, 3, generator=torch.Generator().manual_seed(2))
    opaque = torch.cat([pixels, torch.ones(1, 37, 50, 1)], dim=-1)
    latent = vae.encode(pixels)
    assert torch.equal(latent, vae.encode(opaque))
    assert not torch.equal(latent, vae.encode(opaque / 2))
    assert vae.decode(latent).shape == (1, 32, 48, 4)


# -- the engine --------------------------------------------------------------------------------------------------------

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
    {"device_share": 0.4, "stream_attention": True},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_every_schedule_strip_height_and_odd_size(direction: str, dtype: torch.dtype) -> None:
    model, double = narrow(dtype), copy.deepcopy(narrow(dtype)).double()
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 6)
    f = 1 if direction == "decode" else 8
    for batch, height, width in ((1, 1, 1), (2, 7, 5)):
        x = noise(batch, half.program.in_channels, height * f, width * f, dtype=dtype)
        expected = getattr(double, direction)(x.double())
        for options in SCHEDULES if dtype == torch.float64 else SCHEDULES[1:]:
            for strip_rows in (1, 3, 1000) if dtype == torch.float64 else (1, 5):
                out = half.finish(run(half.program, uniform(4, strip_rows, **options), x))
                assert_exact(out, expected.to(dtype), expected)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_levels_may_be_stored_in_different_ways(direction: str) -> None:
    """What one level leaves to be computed is stored by the next, or passed on."""
    model = narrow(torch.float64)
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 6)
    x = noise(1, half.program.in_channels, *((6, 5) if direction == "decode" else (48, 40)), dtype=torch.float64)
    expected = getattr(model, direction)(x)
    for kept in ((True, False, True, False), (False, True, False, False), (False, False, True, True)):
        schedule = tuple(uniform(1, 3, store_blocks=one)[0] for one in kept)
        assert_exact(half.finish(run(half.program, schedule, x)), expected)


def test_kernels_of_upsamples_made_part_by_part_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of wide levels, whose sums would take more than all else."""
    program, z = decoder_of(narrow()).program, noise(1, 6, 7, 5)
    whole = run(program, uniform(4, 4), z)
    monkeypatch.setattr(plain, "FOLD_BYTES", 7 * 24 * 4 * 19)
    assert torch.equal(run(program, uniform(4, 4), z), whole)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_err_no_more_than_untiled(direction: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(narrow()).to(dtype)
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 6)
    x = (noise(1, 6, 12, 10) if direction == "decode" else noise(1, 4, 96, 80)).to(dtype)
    untiled = getattr(model, direction)(x)
    exact = half.finish(run(half.program, uniform(4, 8, store_blocks=False), x))
    assert_exact(exact, untiled, getattr(model.double(), direction)(x.double()))


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_five_budgets_down_to_a_tenth_of_the_untiled_peak(direction: str) -> None:
    model = narrow()
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 6)
    x = noise(1, 6, 40, 32) if direction == "decode" else noise(1, 4, 320, 256)
    with LiveTensorMeter() as meter:
        expected = getattr(model, direction)(x)
    for share in SHARES:
        plan = make_plan(half.program, x.shape, torch.float32, int(share * meter.peak_bytes), AMPLE)
        assert plan.peak_bytes <= share * meter.peak_bytes
        assert plan.work_ratio <= 1.01  # nothing is computed twice
        assert_exact(half.finish(run(half.program, plan.schedule, x)), expected)


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_plans_of_the_full_width(direction: str, share: float) -> None:
    """Shares of what a run takes that nothing keeps short, above what the weights of one layer take."""
    encoder, decoder = (LevelsConfig(n, (n, 2 * n, 4 * n, 8 * n, 8 * n), 2) for n in (96, 144))
    with META:
        model: Any = QwenImage21VAE(qwen_image_21(64, encoder, decoder)).half().eval()
    program = (decoder_of(model) if direction == "decode" else encoder_of(model, 64)).program
    shape = (1, 64, 19, 17) if direction == "decode" else (1, 4, 304, 272)
    resident = make_plan(program, shape, torch.float16, AMPLE, AMPLE, device_type="meta")
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, AMPLE, device_type="meta")
    smallest = refused.value.needed_bytes
    assert smallest is not None
    budget = int(smallest + share * (resident.peak_bytes - smallest))
    plan = make_plan(program, shape, torch.float16, budget, AMPLE, device_type="meta")
    assert plan.work_ratio <= 1.01
    assert_predicted(program, plan, shape)

"""The temporal decoder by the engine: frame groups with whole-group statistics, equal to the untiled run."""

from typing import Any

import pytest
import torch
from exact_vae import VAE, load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.exact.programs import build_program
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.ops.frames import TimeConvolve, TimeResidual
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.schedule import Schedule, uniform
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.moments import Moments
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import decoder_of
from exact_vae.vae_model.families.video.model import VideoConfig, VideoDecoder
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

FLOAT64 = {"rtol": 0, "atol": 1e-12}
CPU, META = torch.device("cpu"), torch.device("meta")


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(*widths: int, seed: int = 140, **options: Any) -> Any:
    """Random weights; the norms over the frames are far from what single frames would give."""
    torch.manual_seed(seed)
    levels = LevelsConfig(widths[0], widths, 1)
    config = VideoConfig(4, 4, None, levels, quant_conv=False, post_quant_conv=False, num_groups=8, **options)
    model = build_kl(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


def make_latents(frames: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Frames of different brightness and contrast, with a gradient and an outlier: white noise would hide mistakes."""
    z = torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(141), dtype=torch.float64)
    z = z * torch.linspace(0.2, 2, frames)[:, None, None, None] + torch.arange(frames)[:, None, None, None]
    z += torch.linspace(-2, 2, height)[:, None]
    z[0, 0, 0, 0] = 30
    return z.to(dtype)


def run(decoder: nn.Module, z: Tensor, schedule: Schedule) -> Tensor:
    rows: list[Tensor] = []
    context = Context(len(z), z.dtype, CPU)
    run_program(build_program(decoder), schedule, context, z, lambda top, strip: rows.append(strip.clone()))
    return torch.cat(rows, dim=2)


SCHEDULES = {
    "resident": {},
    "recompute": {"store_hidden": False, "store_enlarged": False},
    "recompute all": {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("strip_rows", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_every_schedule_and_strip_height(name: str, strip_rows: int, frames: int) -> None:
    model = make_model(8, 16).double()
    z = make_latents(frames, 5, 3)
    made = run(model.decoder, z, uniform(2, strip_rows, **SCHEDULES[name]))
    torch.testing.assert_close(made, model.decode(z), **FLOAT64)


@pytest.mark.parametrize(
    "options",
    [{"video_kernel_size": (5, 1, 1)}, {"video_kernel_size": (1, 1, 1)}, {"time_mode": "only-last-conv"}],
)
def test_other_kernels_and_modes(options: dict[str, Any]) -> None:
    model = make_model(8, 16, **options).double()
    for frames in (1, 2, 4):
        z = make_latents(frames, 3, 4)
        torch.testing.assert_close(run(model.decoder, z, uniform(2, 2)), model.decode(z), **FLOAT64)


def test_fixed_shares() -> None:
    model = make_model(8, merge_strategy="fixed").double()
    for layer in model.modules():
        if hasattr(layer, "mix_factor"):
            layer.mix_factor.fill_(0.7)
    z = make_latents(3, 4, 4)
    torch.testing.assert_close(run(model.decoder, z, uniform(1, 3)), model.decode(z), **FLOAT64)
    assert (model.decode(z) - model.decode(z, skip_video=True)).abs().max() > 0.1


def test_the_program_names_its_steps() -> None:
    steps = build_program(make_model(8, 16).decoder).ops
    over_time = [step for step in steps if isinstance(step, TimeResidual)]
    assert len(over_time) == 6  # two middle blocks, two in each level
    assert over_time[0].conv1.name == "mid.block_1.time_stack.in_layers.2"
    assert over_time[-1].conv2.name == "up.0.block.1.time_stack.out_layers.3"
    assert (over_time[0].norm1.eps, over_time[0].norm1.groups) == (1e-5, 8)
    assert isinstance(steps[-1], TimeConvolve)


def test_moments_of_all_images_together() -> None:
    x = make_latents(5, 6, 7)
    moments = Moments(2)
    for rows in x.split(2, dim=2):
        moments.add(rows)
    whole = moments.over_images()
    groups = x.unflatten(1, (2, 2)).permute(1, 0, 2, 3, 4).flatten(1)
    assert whole.mean is not None
    assert whole.m2 is not None
    torch.testing.assert_close(whole.mean[0], groups.mean(dim=1), **FLOAT64)
    torch.testing.assert_close(whole.m2[0] / whole.count, groups.var(dim=1, correction=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"video_kernel_size": (3, 3, 3)}, "expected a convolution over frames alone, got one over (3, 3, 3)"),
        ({"time_mode": "all"}, "mid.attn_1: expected AttnBlock"),
        ({"time_mode": "attn-only"}, "mid.attn_1: expected AttnBlock"),
    ],
)
def test_what_has_no_rule_runs_untiled_and_says_so(
    options: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(8, 16, **options)
    with pytest.raises(UnsupportedModule) as refused:
        decoder_of(model)
    assert text in str(refused.value)
    vae = load_vae(model.state_dict(), device="cpu", dtype="float32")
    z = make_latents(3, 3, 3, torch.float32)
    images = vae.decode(z)
    assert text in caplog.text
    assert vae.last_plan is None
    assert torch.equal(images, vae.decode(z, "untiled"))


def test_other_classes_with_the_same_names_are_not_read() -> None:
    """A host's own decoder gets its frames in ways that are not known here."""

    class Other(VideoDecoder):
        pass

    Other.__name__ = "VideoDecoder"
    model = make_model(8, 16)
    model.decoder.__class__ = Other
    with pytest.raises(UnsupportedModule, match="expected Encoder or Decoder, got VideoDecoder"):
        build_program(model.decoder)
    with pytest.raises(UnsupportedModule, match="no tanh behind frames"):
        build_program(VideoDecoder(ch=8, out_ch=3, ch_mult=(1,), num_res_blocks=1, z_channels=4, num_groups=8,
                                   video_kernel_size=[3, 1, 1], tanh_out=True).eval())  # fmt: skip


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load_vae(make_model(16, 32, 32).state_dict(), device="cpu", dtype="float32")


def budgets(vae: VAE, z: Tensor) -> list[int]:
    """Ample, half of what that takes, and the least that there is a plan for."""
    program = decoder_of(vae.first_stage_model).program
    shape = (z.shape[0], z.shape[1], z.shape[2], z.shape[3])
    ample = make_plan(program, shape, torch.float32, 2**40).peak_bytes
    with pytest.raises(MemoryBudgetError) as error:
        make_plan(program, shape, torch.float32, 1)
    assert error.value.needed_bytes is not None
    return [2 * ample, (ample + error.value.needed_bytes) // 2, error.value.needed_bytes]


@pytest.mark.parametrize("timesteps", [6, 3])
@pytest.mark.parametrize("budget", [0, 1, 2])
def test_the_vae_is_exact_under_budgets_and_keeps_to_them(vae: VAE, budget: int, timesteps: int) -> None:
    z = make_latents(6, 12, 9, torch.float32)
    untiled = vae.decode(z, "untiled", timesteps=timesteps)
    memory = budgets(vae, z[:timesteps])[budget]
    with LiveTensorMeter() as meter:
        images = vae.decode(z, memory=memory, timesteps=timesteps)
    report, plan = vae.last_report, vae.last_plan
    assert report is not None
    assert plan is not None
    assert report.exact
    assert report.method == "exact"
    torch.testing.assert_close(images, untiled, rtol=0, atol=2e-5)
    assert plan.peak_bytes <= memory
    peak = meter.peak_bytes - images.numel() * 4
    assert peak <= plan.peak_bytes


def outside_the_meter(size: int) -> Tensor:
    with _disable_current_modes():
        return torch.empty(size, dtype=torch.uint8, device=META)


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_predictions_hold_at_full_width(share: float) -> None:
    """Stable Video Diffusion's decoder in 16 bits on tensors without data; the meter sees the device alone."""
    levels = LevelsConfig(128, (128, 256, 512, 512), 2)
    with META:
        model: Any = build_kl(VideoConfig(4, 4, None, levels, quant_conv=False, post_quant_conv=False)).half().eval()
    program, shape = build_program(model.decoder), (3, 4, 16, 16)
    ample = make_plan(program, shape, torch.float16, 2**62, device_type="meta")
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, 2**62, device_type="meta")
    least = refused.value.needed_bytes
    assert least is not None
    budget = int(least + share * (ample.peak_bytes - least))
    plan = make_plan(program, shape, torch.float16, budget, 2**62, device_type="meta")
    spill, x = Spill(META, outside_the_meter), torch.empty(shape, dtype=torch.float16, device=META)
    context = Context(shape[0], torch.float16, META, spill=spill, attend=lambda q, k, v: torch.empty_like(q))
    with torch.inference_mode(), LiveTensorMeter("meta") as meter:
        run_program(program, plan.schedule, context, x, lambda top, rows: None, turned=plan.turned)
    assert meter.current_bytes == 0
    assert plan.peak_bytes <= budget
    assert 1.0 <= plan.peak_bytes / meter.peak_bytes <= 1.15, plan.table()


def test_less_memory_than_untiled(vae: VAE) -> None:
    z = make_latents(4, 24, 24, torch.float32)
    assert budgets(vae, z)[2] < 0.5 * vae.memory_used_decode(z.shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_lose_no_more_than_untiled(dtype: torch.dtype) -> None:
    """Against float64 with the same weights."""
    model = make_model(16, 32, seed=142).to(dtype)
    z = make_latents(4, 12, 10) / 4
    z = z.to(dtype).double()
    made = run(model.decoder, z.to(dtype), uniform(2, 4))
    untiled = model.decode(z.to(dtype))
    assert_exact(made, untiled, model.double().decode(z))

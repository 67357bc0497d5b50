"""The exact engine on a real GPU: results, memory, copies behind the work, running out of memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from exact_vae import VAE
from exact_vae.model_management.host import LocalHost
from exact_vae.tests.exact.coders import FAMILIES, SCHEDULES, decoder, encoder, hard_input, pixels, run
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.exact.schedule import uniform

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("inference"),
]
MIB = 2**20


@pytest.fixture
def full_float32() -> Iterator[None]:
    """Convolutions in float32 as it is, not in TF32 with its 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def cuda_vae(small_vae: VAE) -> VAE:
    """The small VAE on the GPU."""
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    return VAE(small_vae.loaded, LocalHost(), device=cuda, dtype=torch.float32, output_device=cpu)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_and_schedule(name: str, dtype: torch.dtype, full_float32: None) -> None:
    family = FAMILIES[name]().to(dtype)
    family.module.cuda()
    program, scale = family.program, pixels(name)
    for batch, height, width in ((1, scale, 9 * scale), (2, 5 * scale + scale // 2, 3 * scale)):
        x = hard_input(program, batch, height, width).to("cuda", dtype)
        expected = family.run(x)
        for options in SCHEDULES.values():
            for strip_rows in (1, 3, 40):
                assert_exact(run(program, uniform(program.level_count, strip_rows, **options), x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["decoder with quant", "encoder with quant"])
def test_sixteen_bits_are_no_worse_than_the_module(name: str, dtype: torch.dtype) -> None:
    family, double = FAMILIES[name]().to(dtype), FAMILIES[name]().to(dtype).to(torch.float64)
    family.module.cuda()
    double.module.cuda()
    program = family.program
    x = hard_input(program, 1, 24 * pixels(name), 32 * pixels(name)).to("cuda", dtype)
    truth = double.run(x.double())
    untiled = family.run(x)
    for options in SCHEDULES.values():
        assert_exact(run(program, uniform(program.level_count, 5, **options), x), untiled, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_models_wide_enough_for_kernels_of_our_own(name: str, dtype: torch.dtype, full_float32: None) -> None:
    wide = {"ch": 64, "ch_mult": (1, 2, 4), "num_groups": 32}
    make = decoder if name == "decoder" else encoder
    family, double = make(**wide).to(dtype), make(**wide).to(dtype).to(torch.float64)
    family.module.cuda()
    double.module.cuda()
    program = family.program
    x = hard_input(program, 2, 33 * pixels(name), 24 * pixels(name)).to("cuda", dtype)
    truth, untiled = double.run(x.double()), family.run(x)
    for options in SCHEDULES.values():
        result = run(program, uniform(program.level_count, 7, **options), x)
        assert_exact(result, untiled, None if dtype == torch.float32 else truth)


@pytest.mark.parametrize("memory", [None, "24MiB", "12MiB", "6MiB"])
def test_a_limit_is_kept_by_the_allocator_itself(cuda_vae: VAE, memory: str | None, full_float32: None) -> None:
    z = hard_input_of(64, 64)
    expected = cuda_vae.decode(z, "untiled")
    cuda_vae.decode(z, memory=memory)  # brings in the libraries' own memory
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    actual = cuda_vae.decode(z, memory=memory)
    peak = torch.cuda.max_memory_allocated() - before
    assert_exact(actual, expected)
    plan = cuda_vae.last_plan
    assert plan is not None
    assert 0 < peak <= 1.15 * plan.peak_bytes + 16 * MIB, (peak, plan.peak_bytes)


def test_memory_that_runs_out_on_the_way_ends_in_the_exact_image(
    cuda_vae: VAE, monkeypatch: pytest.MonkeyPatch, full_float32: None
) -> None:
    z = hard_input_of(128, 128)
    expected = cuda_vae.decode(z, "untiled")
    cuda_vae.decode(z)
    first = cuda_vae.last_plan
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + first.peak_bytes // 2 + 8 * MIB  # type: ignore[union-attr]
    monkeypatch.setattr(cuda_vae.host, "get_free_memory", lambda device: 8 * 2**30)
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        actual = cuda_vae.decode(z)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_exact(actual, expected)
    assert cuda_vae.last_plan.peak_bytes < first.peak_bytes  # type: ignore[union-attr]


def test_a_hundred_decodes_leave_nothing_behind(cuda_vae: VAE) -> None:
    z = hard_input_of(32, 32)
    for memory in (None, "4MiB"):
        cuda_vae.decode(z, memory=memory)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for turn in range(100):
        cuda_vae.decode(z, memory=(None, "4MiB")[turn % 2])
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def hard_input_of(height: int, width: int) -> torch.Tensor:
    """A latent with a gradient and an outlier."""
    z = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(3))
    z += torch.linspace(-3, 3, width) + torch.linspace(-2, 4, height)[:, None]
    z[0, 0, 0, -1] = 25.0
    return z

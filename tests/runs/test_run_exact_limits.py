"""Exact runs keep to the memory they are allowed; what cannot be run, or not exactly, is told in one line."""

import gc
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact_vae import VAE
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management import memory
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.program import build_program
from torch import Tensor

CPU = torch.device("cpu")
GIB = 2**30
DIRECTIONS = pytest.mark.parametrize("direction", ["decode", "encode"])
pytestmark = pytest.mark.usefixtures("one_thread")


def sample(direction: str, height: int = 128, width: int = 128) -> Tensor:
    """A gradient under the noise: white noise alone hides wrong statistics."""
    generator = torch.Generator().manual_seed(height + width)
    if direction == "decode":
        z = torch.randn(1, 4, height // 8, width // 8, generator=generator)
        return z + torch.linspace(-2, 2, width // 8)
    return (torch.rand(1, height, width, 3, generator=generator) + torch.linspace(0, 1, width)[:, None]) / 2


def measure(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result, and the bytes above it at the worst moment."""
    with LiveTensorMeter() as meter:
        out = run()
        assert meter.current_bytes == out.nbytes
    return out, meter.peak_bytes - out.nbytes


def smallest_budget(vae: VAE, direction: str, x: Tensor) -> str:
    """As the error tells it."""
    with pytest.raises(MemoryBudgetError) as caught:
        getattr(vae, direction)(x, memory=1)
    found = re.fullmatch(
        r"(\d+) x (\d+): expected a budget of at least (.*), got 1 B: allow more memory or use a smaller image",
        str(caught.value),
    )
    assert found is not None
    assert (int(found[1]), int(found[2])) == (128, 64)
    return found[3]


@pytest.mark.parametrize("share", [1.0, 0.99, 0.8, 0.65, 0.5, 0.45])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 192), (256, 128)])
@DIRECTIONS
def test_a_limit_is_kept_and_changes_nothing_in_the_result(
    small_vae: VAE, direction: str, height: int, width: int, share: float
) -> None:
    run, x = getattr(small_vae, direction), sample(direction, height, width)
    _, free = measure(lambda: run(x))
    assert small_vae.last_plan is not None
    assert free <= small_vae.last_plan.peak_bytes
    limit = int(small_vae.last_plan.peak_bytes * share)
    out, peak = measure(lambda: run(x, memory=limit))
    assert peak <= limit
    assert small_vae.last_plan.peak_bytes <= limit
    assert_exact(out, run(x, "untiled"))


@pytest.mark.parametrize("limit", [3_300_000, 3_000_000])
def test_a_limit_that_takes_strips_of_one_row_is_kept(small_vae: VAE, limit: int) -> None:
    x = sample("decode")
    out, peak = measure(lambda: small_vae.decode(x, memory=limit))
    assert_exact(out, small_vae.decode(x, "untiled"))
    assert peak <= limit


@DIRECTIONS
def test_the_limit_may_be_text(small_vae: VAE, direction: str) -> None:
    run, x = getattr(small_vae, direction), sample(direction)
    out, peak = measure(lambda: run(x, memory="5.5MiB"))
    assert peak <= 5.5 * 2**20
    assert_exact(out, run(x, "untiled"))


@DIRECTIONS
def test_a_budget_that_nothing_fits_is_refused_before_any_work(
    small_vae: VAE, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setattr(small_vae.host, "load_model", lambda *args: pytest.fail("loaded"))
    assert smallest_budget(small_vae, direction, sample(direction, 64, 128)).endswith((" KiB", " MiB"))
    assert small_vae.last_plan is None


@DIRECTIONS
def test_the_memory_of_a_cpu_is_a_limit_too(small_vae: VAE, monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    run, x = getattr(small_vae, direction), sample(direction)
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 10 * 2**20)
    out, peak = measure(lambda: run(x))
    assert peak <= 7.5 * 2**20  # a quarter is kept in reserve
    assert_exact(out, run(x, "untiled"))
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 1000)
    with pytest.raises(MemoryBudgetError, match=r"^128 x 128: expected a budget of at least .*, got 750 B: "):
        run(x)


@DIRECTIONS
def test_the_smallest_budget_that_an_error_names_is_enough(small_vae: VAE, direction: str) -> None:
    run, x = getattr(small_vae, direction), sample(direction, 64, 128)
    amount = smallest_budget(small_vae, direction, x)
    assert_exact(run(x, memory=amount), run(x, "untiled"))


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        (0, "at least 1 byte"),
        ("0", "at least 1 byte"),
        (-1, "at least 1 byte"),
        (float("nan"), "at least 1 byte"),
        (2**63, "less than 2^63"),
        ("-5MiB", "an amount such as 2GiB"),
        ("", "an amount such as 2GiB"),
        ("plenty", "an amount such as 2GiB"),
        ("2 GiX", "an amount such as 2GiB"),
    ],
)
@DIRECTIONS
def test_amounts_that_are_none_are_refused_in_one_line(
    small_vae: VAE, direction: str, memory: float | str, text: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        getattr(small_vae, direction)(sample(direction), memory=memory)
    assert str(caught.value).startswith("memory: expected ")
    assert f"got {memory!r}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tile_size", "rows"), [(8, 8), (24, 24), (120, 120), (128, 128), (4096, 128)])
@DIRECTIONS
def test_the_tile_size_is_the_height_of_the_image_s_strips(
    small_vae: VAE, direction: str, tile_size: int, rows: int
) -> None:
    run, x = getattr(small_vae, direction), sample(direction)
    assert_exact(run(x, tile_size=tile_size), run(x, "untiled"))
    assert small_vae.last_plan is not None
    heights = [level.strip_rows for level in small_vae.last_plan.schedule]
    assert heights == sorted(heights, reverse=direction == "encode")
    assert max(heights) == rows
    assert min(heights) == rows // 8


@DIRECTIONS
def test_a_tile_size_keeps_to_the_limit_and_gives_way_to_it(small_vae: VAE, direction: str) -> None:
    run, x = getattr(small_vae, direction), sample(direction)
    out, peak = measure(lambda: run(x, memory="7MiB", tile_size=16))
    assert peak <= 7 * 2**20
    assert_exact(out, run(x, "untiled"))
    out, peak = measure(lambda: run(x, memory="3500KiB", tile_size=128))
    assert peak <= 3500 * 2**10
    assert_exact(out, run(x, "untiled"))


@pytest.mark.parametrize("part", ["decoder.mid.block_1", "decoder.up.0.block.1.conv2", "decoder"])
def test_what_the_engine_does_not_know_runs_untiled_and_says_so(
    small_vae: VAE, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    z, x = sample("decode"), sample("encode")
    plain = small_vae.decode(z, "untiled")
    assert small_vae.decode(z).shape == plain.shape
    assert small_vae.last_plan is not None
    handle = small_vae.first_stage_model.get_submodule(part).register_forward_hook(lambda module, args, out: out * 1.5)
    with caplog.at_level(logging.WARNING):
        hooked = small_vae.decode(z)
    assert small_vae.last_plan is None
    assert torch.equal(hooked, small_vae.decode(z, "untiled"))
    assert not torch.equal(hooked, plain)
    name = part.removeprefix("decoder.") if part != "decoder" else "Decoder"
    assert [record.getMessage() for record in caplog.records] == [
        f"decode: running untiled, which takes more memory: {name}: expected a layer without hooks, got some"
    ]
    small_vae.encode(x)
    assert small_vae.last_plan is not None  # the other half is as it was
    handle.remove()
    assert_exact(small_vae.decode(z), plain)
    assert small_vae.last_plan is not None
    assert len(caplog.records) == 1


def test_the_untiled_run_of_an_unknown_module_keeps_to_the_limit(small_vae: VAE) -> None:
    small_vae.first_stage_model.get_submodule("decoder.mid").register_forward_hook(lambda module, args, out: out)
    with pytest.raises(MemoryBudgetError, match=r"^decode to 128 x 128 pixels: expected .* got 1\.00 MiB allowed"):
        small_vae.decode(sample("decode"), memory="1MiB")


def test_a_schedule_of_another_program_is_refused_in_one_line(small_vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    program = build_program(small_vae.first_stage_model.decoder)
    text = r"^schedule: expected 4 levels, got 3: plan for this program$"
    with pytest.raises(ValueError, match=text):
        run_program(program, uniform(3, 8), Context(1, torch.float32, CPU), sample("decode"), lambda top, rows: None)
    other = make_plan(program, (1, 4, 16, 16), torch.float32, GIB)
    object.__setattr__(other, "levels", other.levels[:3])
    monkeypatch.setattr(small_vae.host, "make_plan", lambda *args, **options: other)
    with pytest.raises(ValueError, match=text):
        small_vae.decode(sample("decode"))


def test_a_plan_for_other_channels_is_refused_in_one_line(small_vae: VAE) -> None:
    program = build_program(small_vae.first_stage_model.decoder)
    with pytest.raises(ValueError, match=r"^shape: expected \(batch, 4, height, width\), got \(1, 3, 16, 16\): plan"):
        small_vae.host.make_plan(program, (1, 3, 16, 16), torch.float32, CPU, None)


@pytest.mark.parametrize("rows", [0, -8])
@DIRECTIONS
def test_strips_below_one_row_are_refused_in_one_line(small_vae: VAE, direction: str, rows: int) -> None:
    small_vae.host.load_model = lambda *args: pytest.fail("loaded")  # type: ignore[method-assign]
    with pytest.raises(InputError, match=rf"^tile_size: expected at least .*, got {rows}: make it larger$"):
        getattr(small_vae, direction)(sample(direction), tile_size=rows)


def resident_bytes() -> int:
    """Main memory that this process has now."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        pytest.skip("this system does not tell a process its resident memory")
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@DIRECTIONS
def test_two_hundred_runs_in_a_row_do_not_grow(small_vae: VAE, direction: str) -> None:
    run, x = getattr(small_vae, direction), sample(direction, 64, 64)
    for _ in range(40):  # until the allocator has what it needs
        run(x)
    with LiveTensorMeter() as meter:
        run(x)
        gc.collect()
        gc.disable()  # nothing may depend on it
        before, live = resident_bytes(), meter.current_bytes
        try:
            for _ in range(20):
                run(x)
            assert meter.current_bytes == live
        finally:
            gc.enable()
    for _ in range(180):
        run(x)
    gc.collect()
    assert resident_bytes() <= 1.02 * before

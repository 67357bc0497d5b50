"""A memory budget binds attention, too, where no kernel keeps the scores to itself: old AMD, Apple, Intel, DirectML."""

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management import attention
from exact_vae.model_management.host import LocalHost
from exact_vae.vae_model.attention.streamed import attention_bytes
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.kernels.profile import profile_of
from exact_vae.vae_model.vae import VAE

CPU = torch.device("cpu")
SIDE = 64
"""All scores of so many latent cells squared are 201 MiB with their copies."""


@pytest.fixture
def vae(request: pytest.FixtureRequest) -> VAE:
    torch.manual_seed(0)
    levels = LevelsConfig(ch=32, widths=(32, 32), num_res_blocks=1)
    state = build_kl(KLConfig(4, 4, levels, levels, num_groups=8)).state_dict()
    loaded = load_model(state, config={"norm_num_groups": 8})
    return VAE(loaded, LocalHost(), device=CPU, dtype=request.param, output_device=CPU)


@pytest.mark.parametrize("vae", [torch.float32, torch.bfloat16], indirect=True)
def test_the_budget_holds_without_a_fused_kernel(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "pytorch_attention_enabled", lambda: False)
    z = torch.randn(1, 4, SIDE, SIDE)
    vae.decode(z[..., :8, :8])  # kernels are made outside of the meter
    budget = 24 * 2**20
    with LiveTensorMeter("cpu") as meter:
        image = vae.decode(z, memory=budget)
    assert vae.last_plan is not None
    assert meter.peak_bytes - image.nbytes <= vae.last_plan.peak_bytes <= budget


@pytest.mark.parametrize("vae", [torch.float32], indirect=True)
def test_slices_change_nothing_but_memory(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(1, 4, 24, 40)
    fused = vae.decode(z)
    monkeypatch.setattr(attention, "pytorch_attention_enabled", lambda: False)
    torch.testing.assert_close(vae.decode(z), fused, rtol=0, atol=1e-5)


def test_what_has_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.is_fused(512, torch.float32, CPU)
    assert not attention.is_fused(512, torch.float32, torch.device("mps"))
    monkeypatch.setattr(attention, "pytorch_attention_enabled", lambda: False)
    assert not attention.is_fused(512, torch.float32, CPU)


def test_scores_are_given_no_more_than_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "pytorch_attention_enabled", lambda: False)
    given: list[int | None] = []

    def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, max_bytes: int | None = None) -> torch.Tensor:
        given.append(max_bytes)
        return v

    tokens = torch.zeros(1, 2048, 8)
    for free_bytes in (2**40, 2**19):
        monkeypatch.setattr(attention, "get_free_memory", lambda device, free=free_bytes: free)
        attention.attend(tokens, tokens, tokens, table={"sliced": note}, max_bytes=2**20)
    assert given == [2**20, 2**17]


def test_the_bytes_of_slices_count_scores_casts_and_the_result() -> None:
    most, size = profile_of("mps").slice_bytes, 4096 * 64
    single = attention_bytes(4096, 4096, 64, torch.float32, "mps", fused=False)
    half = attention_bytes(4096, 4096, 64, torch.float16, "mps", fused=False)
    assert most - 3 * 4096 * 4 < single < most + 4 * 4 * size
    assert half - single == (2 * 4 - 2) * size  # casts of keys and values, and half the result
    assert attention_bytes(4096, 4096, 64, torch.float32, "mps", fused=True) == 4 * size


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_fused_kernel_never_takes_less(device_type: str, dtype: torch.dtype) -> None:
    sizes = [attention_bytes(4096, 4096, 64, dtype, device_type, fused=fused) for fused in (False, True)]
    assert sizes[0] >= max(sizes[1], profile_of(device_type).slice_bytes - 3 * 4096 * 4)

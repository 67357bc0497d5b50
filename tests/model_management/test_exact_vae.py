"""VAEs of the host made exact: equal to the host's own untiled results, by the host's rules, the original untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact_vae.model_management.exact_vae import ExactVAE, make_exact
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.vae import VAE
from torch import Tensor

Host = Any
KINDS = pytest.mark.parametrize("kind", ["kl", "kl_quant", "taesd", "taesd_classes"])
pytestmark = pytest.mark.usefixtures("one_thread")


def latent(vae: Any, height: int = 9, width: int = 7, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    z = torch.randn(batch, vae.latent_channels, height, width, generator=generator)
    return z + torch.linspace(-2, 2, width)


def pixels(height: int = 70, width: int = 90, channels: int = 3) -> Tensor:
    return torch.rand(2, height, width, channels, generator=torch.Generator().manual_seed(width))


@KINDS
@pytest.mark.parametrize("cast", [False, True])
def test_every_way_in_gives_the_host_s_untiled_result(stub_host: Host, kind: str, cast: bool) -> None:
    vae = stub_host.make_vae(kind, cast=cast, patched="taesd" not in kind)
    made, z, x = make_exact(vae), latent(vae), pixels()
    image, encoded = vae.decode(z), vae.encode(x)
    stub_host.forget()
    assert_exact(made.decode(z), image)
    assert_exact(made.decode_tiled(z, 4, 4, 1), image)
    assert_exact(made.decode_tiled_(z, 4, 4, 1), image.movedim(-1, 1))
    assert_exact(made.encode(x), encoded)
    assert_exact(made.encode_tiled(x, tile_x=32, tile_y=32, overlap=8), encoded)
    assert_exact(made.encode_tiled_(x[:, 3:67, 1:89].movedim(-1, 1)), encoded)
    assert made.last_report.exact
    assert stub_host.calls == []  # none of the host's own methods ran


@KINDS
def test_a_vae_that_does_not_crop_is_given_all_of_the_image(stub_host: Host, kind: str) -> None:
    vae = stub_host.make_vae(kind)
    vae.crop_input = False
    expected, made = vae.encode(pixels(71, 89)), make_exact(vae)
    assert_exact(made.encode(pixels(71, 89)), expected)
    assert made.last_report.exact


def test_the_original_and_its_class_are_untouched(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    before, kind = dict(vars(vae)), type(vae)
    made = make_exact(vae, "64MiB")
    made.decode(latent(vae))
    assert type(vae) is kind
    assert isinstance(made, kind)
    assert isinstance(made, ExactVAE)
    assert {key: value is vars(vae)[key] for key, value in before.items()} == dict.fromkeys(before, True)
    assert type(make_exact(stub_host.make_vae())) is type(made)  # one class, however many copies
    assert make_exact(made) is made


@pytest.mark.parametrize("kind", ["pixel_space", "video", "self_tiling"])
def test_what_is_not_known_runs_by_its_own_methods_and_says_why(stub_host: Host, kind: str) -> None:
    vae = stub_host.make_vae(kind)
    if kind == "self_tiling" and not stub_host.new:
        pytest.skip("older hosts have no VAE that tiles itself")
    made = make_exact(vae)
    shape = (1, 16, 1, 4, 4) if kind == "video" else (1, vae.latent_channels, 16, 16)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(z)
    stub_host.forget()
    torch.testing.assert_close(made.decode(z), expected, rtol=0, atol=0)
    assert "decode" in stub_host.calls
    assert not made.last_report.exact
    assert made.last_report.reason
    assert made.last_report.line.startswith("host's own method · ")
    assert "load the other half" not in made.last_report.reason  # there may be none


def test_reserves_its_own_peak_and_never_the_untiled_estimate(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    made, z = make_exact(vae), latent(vae, 64, 64, 1)
    untiled = vae.memory_used_decode(z.shape, torch.float32)
    made.decode(z)
    (asked,) = stub_host.memory_required
    assert asked == made.last_report.plan.peak_bytes
    assert asked < untiled / 8
    assert made.memory_used_decode(z.shape, torch.float32) == asked
    assert made.memory_used_encode((1, 3, 512, 512), torch.float32) < vae.memory_used_encode(
        (1, 3, 512, 512), torch.float32
    )


def test_a_limit_is_kept_and_one_that_nothing_fits_is_refused(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    z = latent(vae, 32, 32, 1)
    whole = make_exact(vae)
    image = whole.decode(z)
    limit = whole.last_report.plan.peak_bytes * 45 // 100
    small = make_exact(vae, limit)
    assert_exact(small.decode(z), image)
    assert small.last_report.plan.peak_bytes <= limit
    assert small.last_report.as_dict()["plan_bytes"] == small.last_report.plan.peak_bytes
    with pytest.raises(MemoryBudgetError, match="expected a budget of at least"):
        make_exact(vae, 1).decode(z)


def test_survives_copying_another_patcher_and_changed_padding(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    made, z = make_exact(vae), latent(vae)
    other = copy.copy(made)
    other.patcher = made.patcher.clone()
    other.first_stage_model = other.patcher.model
    assert_exact(other.decode(z), vae.decode(z))
    for layer in vae.first_stage_model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [layer.padding[1]] * 2 + [layer.padding[0]] * 2
    wrapped = vae.decode(z)
    assert_exact(made.decode(z), wrapped)
    assert_exact(other.decode(z), wrapped)


def test_a_replaced_part_is_not_passed_over(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    made, z = make_exact(vae), latent(vae, 4, 4, 1)
    layer = vae.first_stage_model.decoder.mid.block_1
    layer.forward = lambda x, *args: x  # as some packs do
    torch.testing.assert_close(made.decode(z), vae.decode(z))
    assert not made.last_report.exact
    assert "replaced" in made.last_report.reason


@pytest.mark.parametrize("where", [1, 3, 40])
def test_a_cancel_ends_the_run_and_the_next_one_works(stub_host: Host, where: int) -> None:
    vae = stub_host.make_vae()
    made, z = make_exact(vae), latent(vae)
    stub_host.interrupt_at = where
    with pytest.raises(stub_host.interrupt):
        made.decode(z)
    assert stub_host.events[-1][1]["done"]
    stub_host.interrupt_at = None
    assert_exact(made.decode(z), vae.decode(z))


def test_progress_rises_and_ends_with_the_report(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    made = make_exact(vae)
    made.decode(latent(vae))
    assert stub_host.progress[-1] == (1000, 1000)
    assert [value for value, _ in stub_host.progress] == sorted(value for value, _ in stub_host.progress)
    (name, data, _) = stub_host.events[-1]
    assert name == "exact_vae.progress"
    assert (data["node"], data["done"], data["fraction"]) == ("5", True, 1.0)
    assert data["line"] == made.last_report.line
    assert data["line"].startswith("exact · resident · ")


def test_out_of_memory_on_the_way_is_no_end(stub_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = stub_host.make_vae()
    made, z = make_exact(vae), latent(vae, 32, 32, 1)
    image = vae.decode(z)
    calls, error = [0], stub_host.modules["comfy.model_management"].OOM_EXCEPTION

    from exact_vae.model_management.comfy_host import ComfyHost

    own = ComfyHost.attend

    def attend(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 1:
            raise error("out of memory")
        return own(self, q, k, v)

    monkeypatch.setattr(ComfyHost, "attend", attend)
    assert_exact(made.decode(z), image)
    assert calls[0] == 2
    assert stub_host.cache_emptied >= 1


def test_every_weight_is_asked_for_by_the_host_s_casting(new_host: Host) -> None:
    vae = new_host.make_vae("kl_quant", cast=True)
    made = make_exact(vae)
    made.decode(latent(vae))
    layers = {name for name, layer in vae.first_stage_model.named_modules() if hasattr(layer, "weight")}
    assert set(new_host.fetched) == {name for name in layers if name.startswith(("decoder", "post_quant_conv"))}
    # Two images: each image asks once per layer.
    assert set(new_host.fetched.values()) == {2}


@pytest.mark.parametrize("lends", [True, False])
@pytest.mark.parametrize("cast", [torch.float32, torch.bfloat16])
def test_weights_are_copied_only_where_they_are_lent(new_host: Host, lends: bool, cast: torch.dtype) -> None:
    """A copy of a layer's weights stands beside what is planned."""
    from exact_vae.model_management.comfy_host import ComfyHost

    new_host.lends = lends
    vae = new_host.make_vae()
    layer = vae.first_stage_model.decoder.conv_in
    weight, bias = ComfyHost(vae.patcher).weights(layer, torch.zeros(1, dtype=cast))
    assert bias is not None
    assert torch.equal(weight, layer.weight.to(cast))
    assert torch.equal(bias, layer.bias.to(cast))
    own = (weight.data_ptr(), bias.data_ptr()) == (layer.weight.data_ptr(), layer.bias.data_ptr())
    assert own == (not lends and cast == layer.weight.dtype)
    assert new_host.pinned["decoder.conv_in"] == 0


def test_newer_hosts_choose_the_dtype_of_images(new_host: Host) -> None:
    new_host.fp16_intermediates = True
    vae = new_host.make_vae()
    z = latent(vae)
    found, expected = make_exact(vae).decode(z), vae.decode(z)
    assert found.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_vae_of_ours_takes_a_limit_on_a_copy(small_vae: VAE) -> None:
    assert make_exact(small_vae) is small_vae
    made = make_exact(small_vae, 10_000_000)
    assert (made.memory_limit, small_vae.memory_limit) == (10_000_000, None)
    made.decode(torch.randn(1, 4, 16, 16))
    assert made.last_plan is not None
    assert made.last_plan.peak_bytes <= 10_000_000


def test_an_image_smaller_than_a_cell_is_refused(stub_host: Host) -> None:
    with pytest.raises(InputError, match="one latent cell, got 7 x 5: enlarge the image"):
        make_exact(stub_host.make_vae()).encode(torch.rand(1, 5, 7, 3))


def test_outside_the_host_other_objects_stay_what_they_are() -> None:
    vae = object()
    assert make_exact(vae) is vae


def test_asks_for_an_eighth_of_the_core_s_estimate_at_4096_pixels(
    stub_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full-width model in 16 bits; the core asks for 68 GiB to decode. Shown by pytest -s."""
    from exact_vae.vae_model.families.ldm.autoencoder import build_kl
    from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig

    class AskedError(Exception):
        """Instead of loading and running."""

    asked: list[int] = []

    def load_models_gpu(models: Any, memory_required: int = 0, **_: Any) -> None:
        asked.append(memory_required)
        raise AskedError

    monkeypatch.setattr(stub_host.modules["comfy.model_management"], "load_models_gpu", load_models_gpu)
    stub_host.free_bytes = 24 * 2**30
    vae = stub_host.make_vae()
    levels = LevelsConfig(ch=128, widths=(128, 256, 512, 512), num_res_blocks=2)
    with torch.device("meta"):
        vae.first_stage_model = build_kl(KLConfig(4, 4, levels, levels)).half().eval()
    vae.vae_dtype = torch.float16
    made = make_exact(vae)
    shapes = {"decode": (1, 4, 512, 512), "encode": (1, 3, 4096, 4096)}
    for what, shape in shapes.items():
        x = torch.empty(1).expand(shape)
        with pytest.raises(AskedError):
            getattr(made, what)(x if what == "decode" else x.movedim(1, -1))
        theirs, ours = (getattr(kind, f"memory_used_{what}")(shape, torch.float16) for kind in (vae, made))
        gib = f"{asked[-1] / 2**30:.2f} GiB; the core's estimate {theirs / 2**30:.1f} GiB"
        print(f"\nmemory_required, {what} of 4096 x 4096 in 16 bits: {gib}")
        assert asked[-1] == ours
        assert theirs > 50 * 2**30
        assert 8 * 2**30 < ours < 10 * 2**30

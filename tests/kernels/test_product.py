"""Matrix products by either library: right, as exact as each other, and only those are chosen that run."""

from __future__ import annotations

import pytest
import torch
from exact_vae.vae_model.exact.layer import Conv
from exact_vae.vae_model.exact.read import read_conv
from exact_vae.vae_model.kernels import products as product
from exact_vae.vae_model.kernels import winograd
from exact_vae.vae_model.kernels import winograd_upsample as enlarge_tiles
from exact_vae.vae_model.kernels.products import OneDnnProducts, Products, best_product, best_products
from exact_vae.vae_model.kernels.winograd import plan_product_tiles, window_rows
from torch import Tensor, nn
from torch.nn import functional

WAYS = [Products(), OneDnnProducts()]
ROUNDING = 2.0**-24
both = pytest.mark.parametrize("way", WAYS, ids=["plain", "onednn"])


@pytest.fixture(params=WAYS, ids=["plain", "onednn"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Products:
    """One of the two wherever the engine asks for the best."""
    for module in (winograd, enlarge_tiles):
        monkeypatch.setattr(module, "best_products", lambda: request.param)
    return request.param


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def arranged(way: Products, weights: Tensor) -> Tensor:
    """(g, n, m, C), in two steps as large weights are."""
    target = torch.full(weights.shape, torch.nan)
    for first, end in ((0, 3), (3, weights.shape[2])):
        way.arrange(weights[:, :, first:end].double(), first, target)
    return target


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Mean error in roundings of the results' own size."""
    error, size = (values.double().square().mean().sqrt() for values in (found.double() - expected, expected))
    return float(error / size) / ROUNDING


@both
@pytest.mark.parametrize("channels", [1, 40, 176, 177, 200, 512])
def test_parts_hold_every_channel_once_in_sums_of_bounded_length(way: Products, channels: int) -> None:
    parts = way.parts(channels)
    assert [channel for part in parts for channel in range(*part)] == list(range(channels))
    assert max(end - start for start, end in parts) <= way.most_terms


@both
@pytest.mark.parametrize("channels", [24, 200, 512])
def test_grouped_products(way: Products, channels: int) -> None:
    weights, tokens = normal(2, 6, 40, channels), normal(11, 6, channels)
    parts = [tokens[..., start:end].contiguous() for start, end in way.parts(channels)]
    for number, matrices in enumerate(arranged(way, weights)):
        found = way.grouped(parts, matrices)
        expected = torch.einsum("tnc,nmc->tnm", tokens.double(), weights[number].double())
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 6


@both
@pytest.mark.parametrize("channels", [24, 200, 512])
def test_single_products(way: Products, channels: int) -> None:
    weights, a = normal(1, 1, 40, channels), normal(13, channels)
    out = torch.full((13, 40), torch.nan)
    way.single(a, arranged(way, weights)[0, 0], out)
    assert relative_error(out, a.double() @ weights[0, 0].double().t()) < 6


def make_conv(in_channels: int, out_channels: int) -> Conv:
    torch.manual_seed(in_channels)
    return read_conv(nn.Conv2d(in_channels, out_channels, 3, padding=1).requires_grad_(False), "conv")


@pytest.mark.parametrize("channels", [128, 256, 400, 512])
def test_convolutions_are_as_exact_by_either(chosen: Products, channels: int) -> None:
    """Wide layers have sums in parts; the bound is that of test_exact_winograd."""
    conv = make_conv(channels, 96)
    x = functional.silu(normal(1, channels, 9, 35))
    weight, bias = conv.module.weight, conv.module.bias
    expected = functional.conv2d(x.double(), weight.double(), bias.double())[0].permute(1, 2, 0)
    geometry = plan_product_tiles(conv.channels, 33, 7)
    window = torch.zeros(window_rows(7), geometry.tiles * winograd.TILE, channels)
    window[:9, :35] = x[0].permute(1, 2, 0)
    out = torch.full((7, 33, 96), torch.nan)
    scratch = torch.full((geometry.scratch_bytes // 4,), torch.nan)
    geometry.run(window, geometry.transform_weight(weight), bias, scratch, out)
    assert relative_error(out, expected) <= 32


def test_enlargements_are_right_by_either(chosen: Products) -> None:
    conv = make_conv(400, 48)
    x = normal(1, 400, 4, 5)
    weight, bias = conv.module.weight, conv.module.bias
    large = functional.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    expected = functional.conv2d(large, weight.double(), bias.double(), padding=1)[0].permute(1, 2, 0)
    geometry = enlarge_tiles.plan_product_upsample(conv.channels, 5, 4)
    window = functional.pad(x, (*geometry.columns, 1, 1))[0].permute(1, 2, 0).contiguous()
    out = torch.full((8, 10, 48), torch.nan)
    arranged_weight = geometry.transform_weight(weight)
    scratch = torch.full((geometry.scratch_bytes // 4,), torch.nan)
    geometry.run(window, arranged_weight, bias, scratch, out, 0)
    assert relative_error(out, expected) < 12


def test_a_way_that_is_missing_or_wrong_is_not_chosen() -> None:
    def missing() -> Tensor:
        raise AttributeError("no such operation")

    ways = {
        "missing": missing,
        "wrong": lambda: torch.zeros(2),
        "right": lambda: torch.full((2,), float(product._PROBE)),
    }
    assert product._fastest(ways, lambda name: ways[name]()) == "right"
    assert product._fastest(("missing", "wrong"), lambda name: ways[name]()) == "missing"


def test_the_number_of_threads_is_left_as_found() -> None:
    threads = torch.get_num_threads()
    assert product._fastest(("one", "other"), lambda name: torch.full((2,), float(product._PROBE))) in ("one", "other")
    assert torch.get_num_threads() == threads


def test_the_choice_is_made_once() -> None:
    assert best_products() is best_products()
    assert best_product("cpu", torch.float16) is best_product("cuda", torch.float32)

"""Sources of rows that compute, read in pieces of every size, against PyTorch's own convolutions on the whole tensor.

All in float64: strips only change the order of a few hundred additions, 1e-13 of the values; 1e-12 is asked for.
"""

import random

import pytest
import torch
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.layer import Conv
from exact_vae.vae_model.exact.ops.convolve import ConvolvedSource, PointwiseSource
from exact_vae.vae_model.exact.ops.upsample import UpsampledSource
from exact_vae.vae_model.exact.read import read_conv
from exact_vae.vae_model.exact.stream.added import AddedSource
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.plane import Plane
from exact_vae.vae_model.exact.stream.source import MakeSource, PlaneSource, Source
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")
MODES = ["zeros", "circular", "reflect", "replicate"]
CLOSE = {"rtol": 0, "atol": 1e-12}


def context(channels_last: bool = True) -> Context:
    return Context(2, torch.float64, CPU, channels_last)


def image(height: int, width: int = 5, channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=generator)


def size_of(x: Tensor) -> Extent:
    return Extent(x.shape[1], x.shape[2], x.shape[3])


def plane_of(x: Tensor, strip_rows: int, ctx: Context | None = None) -> Plane:
    plane = Plane(ctx or context(), size_of(x), strip_rows)
    for index, strip in enumerate(x.split(strip_rows, dim=2)):
        plane.put(index, strip.clone())
    return plane


def read(rows: Source, ends: list[int]) -> Tensor:
    """Everything, taken up to each of `ends` in turn."""
    pieces: list[Tensor] = []
    for end in [*ends, rows.bottom]:
        before = rows.at
        taken = [piece.clone() for piece in rows.take(end)]
        assert sum(piece.shape[2] for piece in taken) == end - before
        pieces += taken
    return torch.cat(pieces, dim=2)


def every_step(top: int, bottom: int) -> list[list[int]]:
    """Ends of reading by 1, 2, 3, ... rows, and some uneven ones."""
    patterns = [list(range(top + step, bottom, step)) for step in range(1, bottom - top + 1)]
    for seed in range(3):
        choice = random.Random(seed)
        patterns.append(sorted(choice.sample(range(top + 1, bottom), choice.randint(0, bottom - top - 1))))
    return patterns


def convolution(kernel: int, stride: int, padding: int, mode: str, bias: bool = True) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(kernel)
        return nn.Conv2d(4, 6, kernel, stride, padding, padding_mode=mode, bias=bias).double().requires_grad_(False)


def convolved(layer: nn.Conv2d, x: Tensor, strip_rows: int, ctx: Context, **geometry: int) -> ConvolvedSource:
    conv = read_conv(layer, "conv", kernel=layer.kernel_size[0], **geometry)
    plane = plane_of(x, strip_rows, ctx)
    bottom = conv.out_size(x.shape[2])
    return ConvolvedSource(ctx, conv, 0, bottom, lambda t, b: PlaneSource(plane, t, b, consume=True), size_of(x))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0)])
def test_convolutions_equal_pytorchs(kernel: int, padding: int, mode: str, channels_last: bool) -> None:
    layer = convolution(kernel, 1, padding, mode)
    for height in (1, 2, 3, 8):
        if mode == "reflect" and padding >= height:
            continue  # PyTorch refuses it, too.
        x = image(height)
        for strip_rows in range(1, height + 1):
            for ends in every_step(0, height):
                rows = convolved(layer, x, strip_rows, context(channels_last), padding=padding)
                torch.testing.assert_close(read(rows, ends), layer(x), **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_strided_convolutions_equal_pytorchs(mode: str) -> None:
    layer = convolution(3, 2, 1, mode, bias=False)
    for height, width in ((2, 5), (3, 4), (7, 5), (8, 2)):
        x = image(height, width)
        for ends in every_step(0, (height + 1) // 2):
            rows = convolved(layer, x, 3, context(), stride=2)
            torch.testing.assert_close(read(rows, ends), layer(x), **CLOSE)


def test_the_encoders_downsampling_pads_on_the_right_and_the_bottom() -> None:
    layer = convolution(3, 2, 0, "zeros")
    for height, width in ((2, 5), (3, 4), (7, 5), (8, 2)):
        x = image(height, width)
        for ends in every_step(0, height // 2):
            rows = convolved(layer, x, 3, context(), stride=2, padding=0, extra_pad=1)
            expected = layer(functional.pad(x, (0, 1, 0, 1)))
            torch.testing.assert_close(read(rows, ends), expected, **CLOSE)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_enlargements_equal_interpolation_and_convolution(mode: str, channels_last: bool) -> None:
    layer = convolution(3, 1, 1, mode)
    conv = read_conv(layer, "conv")
    for height, width in ((1, 1), (1, 4), (2, 3), (5, 4)):
        x = image(height, width)
        expected = layer(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        for ends in every_step(0, 2 * height):
            ctx = context(channels_last)
            plane = plane_of(x, 2, ctx)
            rows = UpsampledSource(ctx, conv, 0, 2 * height, _consuming(plane), size_of(x))
            torch.testing.assert_close(read(rows, ends), expected, **CLOSE)


def _consuming(plane: Plane) -> MakeSource:
    return lambda top, bottom: PlaneSource(plane, top, bottom, consume=True)


def test_chained_circular_sources_are_read_over_the_border() -> None:
    # What a circular convolution asks of the sources before it: rows outside 0..height, which mean the other end.
    first, second = convolution(3, 1, 1, "circular"), convolution(3, 1, 1, "circular")
    second.weight = nn.Parameter(second.weight[:4].repeat(1, 2, 1, 1)[:, :6].contiguous(), requires_grad=False)
    second.in_channels, second.out_channels, second.bias = 6, 4, None
    x = image(5)
    enlarged = first(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    ctx, small = context(), size_of(x)
    for ends in every_step(0, 10):
        plane = plane_of(x, 2, ctx)
        rows = ConvolvedSource(
            ctx,
            read_conv(second, "second"),
            0,
            10,
            lambda t, b, p=plane: UpsampledSource(ctx, read_conv(first, "first"), t, b, _consuming(p), small),
            Extent(6, 10, 10),
        )
        torch.testing.assert_close(read(rows, ends), second(enlarged), **CLOSE)


def test_sums_activations_and_1x1_convolutions() -> None:
    layer, pointwise = convolution(3, 1, 1, "zeros"), convolution(1, 1, 0, "zeros")
    x = image(7)
    spec: Conv = read_conv(pointwise, "pointwise", kernel=1, padding=0)
    for strip_rows in (1, 3, 7):
        for ends in every_step(0, 7):
            ctx = context()
            other = PointwiseSource(ctx, spec, PlaneSource(plane_of(x, strip_rows), 0, 7, consume=True))
            rows = AddedSource(convolved(layer, x, strip_rows, ctx), other, "silu")
            torch.testing.assert_close(read(rows, ends), functional.silu(layer(x) + pointwise(x)), **CLOSE)


@pytest.mark.parametrize("after", ["silu", "relu", "gelu", "mish", "tanh"])
def test_what_stands_before_and_behind_a_convolution(after: str) -> None:
    layer, x = convolution(3, 1, 1, "zeros"), image(6)
    expected = getattr(torch if after == "tanh" else functional, after)(layer(x * 2 + 1))

    def scale_shift(target: Tensor, rows: Tensor) -> None:
        torch.add(rows * 2, 1, out=target)

    for ends in every_step(0, 6):
        source = _consuming(plane_of(x, 4))
        rows = ConvolvedSource(context(), read_conv(layer, "c"), 0, 6, source, size_of(x), lambda: scale_shift, after)
        torch.testing.assert_close(read(rows, ends), expected, **CLOSE)


def test_weights_are_asked_for_once_and_only_when_rows_are_taken() -> None:
    asked: list[nn.Module] = []

    def provider(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        asked.append(module)
        return module.weight.to(like), None  # type: ignore[operator,union-attr]

    layer, x = convolution(3, 1, 1, "zeros", bias=False), image(6)
    ctx = Context(2, torch.float64, CPU, weights=provider)
    rows = convolved(layer, x, 2, ctx)
    assert asked == []
    torch.testing.assert_close(read(rows, [1, 2, 3, 4, 5]), layer(x), **CLOSE)
    assert asked == [layer]

"""Values of 1000 +- 1 in every memory order: PyTorch's channels-last CPU kernel is off by thousands there."""

from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.model_management.host import LocalHost
from exact_vae.tests.families.table import ROWS, Row, hints, random_model
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.families.video.model import VideoDecoder
from exact_vae.vae_model.group_norm import GroupNorm
from exact_vae.vae_model.training.discriminator import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OFFSET = 1000.0
# float32 values of 1000 have steps of 6e-5. 16-bit results are rounded to 8 or 11 bits at up to 5.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}


SHAPES = [(2, 16, 33, 20), (2, 16, 3, 10, 9), (1, 16, 7, 1), (2, 64, 1, 1), (2, 16, 5, 1, 1), (2, 8, 6)]
"""One pixel is contiguous and channels-last at once."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "shape", [(2, 16, 33, 20), (2, 16, 3, 10, 9), (1, 16, 7, 1), (2, 64, 1, 1), (2, 16, 5, 1, 1), (2, 8, 6)]
)
def test_every_order_gives_the_statistics_of_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = GroupNorm(4, shape[1], eps=1e-6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.to(dtype)
    level = OFFSET if dtype.itemsize > 2 else OFFSET / 10  # of which 16 bits still keep something
    x = (torch.randn(shape, dtype=torch.float64) + level).to(dtype)
    orders = [x, x.transpose(-1, -2).contiguous().transpose(-1, -2)]
    orders += [x.contiguous(memory_format=ORDERS[x.ndim])] if x.ndim in ORDERS else []
    expected = functional.group_norm(x.double(), 4, layer.weight.double(), layer.bias.double(), 1e-6)
    for given in orders:
        out = layer(given)
        assert out.shape == x.shape
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def offset(model: Any) -> Any:
    """Activations of about 1000 from the first layer on; the first norm takes the offset away again."""
    first = ("conv_in", ".pool.0", "decoder.layers.0", "encoder.layers.0")
    for name, layer in model.named_modules():
        if name.endswith(first) and isinstance(layer, nn.Conv2d):
            layer.bias = nn.Parameter(torch.full((layer.out_channels,), OFFSET), requires_grad=False)
    return model


def vae_of(row: Row, dtype: torch.dtype, order: torch.memory_format = torch.contiguous_format) -> VAE:
    """The same weights every time."""
    loaded = load_model(dict(offset(random_model(row)).state_dict()), dtype=dtype, config=hints(row.config))
    loaded.model.to(memory_format=order)  # pyright: ignore
    return VAE(loaded, LocalHost(), device=CPU, dtype=dtype, output_device=CPU)


@pytest.mark.parametrize("name", ["SD1, SD2, SDXL", "Flux.2", "VQ-f4", "kl-f16"])
@pytest.mark.parametrize("method", ["untiled", "blend"])
def test_the_reference_does_not_depend_on_the_memory_order(name: str, method: str) -> None:
    """Weights, latents and pixels in either order are as near to float64 as contiguous ones."""
    row = ROWS[name]
    torch.manual_seed(4)
    z, pixels = torch.randn(1, row.channels, 3, 4), torch.rand(1, 2 * row.factor, 3 * row.factor, 3)
    truth, plain = vae_of(row, torch.float64), vae_of(row, torch.float32)
    other = vae_of(row, torch.float32, torch.channels_last)
    for run, x in ((VAE.decode, z), (VAE.encode, pixels)):
        turned = x.contiguous(memory_format=torch.channels_last)
        expected = run(truth, x, method)
        usual = float((run(plain, x, method) - expected).abs().max())
        assert usual < 0.01
        for vae, given in ((plain, turned), (other, x), (other, turned)):
            assert float((run(vae, given, method) - expected).abs().max()) <= 3 * usual + 1e-6


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the mean square of a training forward, in float64."""
    z, y, _ = model(x)
    (y.square().mean() + z.square().mean()).backward()
    return [parameter.grad.double() for parameter in model.parameters() if parameter.grad is not None]


def test_a_training_step_does_not_depend_on_the_memory_order() -> None:
    """The trainer's `channels_last`, on a CPU."""
    row = ROWS["SD3, Flux.1"]
    x = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(5)) * 2 - 1
    results: list[list[Tensor]] = []
    for dtype, order in (
        (torch.float64, torch.contiguous_format),
        (torch.float32, torch.contiguous_format),
        (torch.float32, torch.channels_last),
    ):
        model = offset(random_model(row)).to(dtype).train().requires_grad_(True)
        results.append(gradients(model.to(memory_format=order), x.to(dtype, memory_format=order)))
    truth, plain, other = results
    assert len(truth) > 50
    for exact, usual, turned in zip(truth, plain, other, strict=True):
        scale = float(exact.abs().max())
        assert float((turned - exact).abs().max()) <= 10 * float((usual - exact).abs().max()) + 1e-6 * scale


def test_frames_tiny_models_and_discriminators_do_not_depend_on_the_memory_order() -> None:
    torch.manual_seed(6)
    video = VideoDecoder(
        ch=16, out_ch=3, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, num_groups=4, time_mode="all", alpha=0.5
    )
    judge: Any = PatchDiscriminator(width=16)
    judge[2].bias.data += OFFSET  # of the convolution before the first norm
    tiny = offset(random_model(ROWS["TAEF2"]))
    for model, x, run in (
        (offset(video), torch.randn(4, 4, 6, 5), lambda model, x: model(x, timesteps=2)),
        (tiny, torch.randn(1, 32, 6, 5), lambda model, x: model.decode(x)[0]),
        (tiny, torch.rand(1, 3, 48, 40) * 2 - 1, lambda model, x: model.encode(x)[0]),
        (judge, torch.randn(1, 3, 64, 64), lambda model, x: model(x)),
    ):
        with torch.no_grad():
            exact, usual = run(model.double(), x.double()), run(model.float(), x)
            turned = run(channels_last(model), x.contiguous(memory_format=torch.channels_last))
        limit = 3 * float((usual - exact).abs().max()) + 1e-6
        assert float((turned - exact).abs().max()) <= limit < 0.1


def channels_last(model: nn.Module) -> nn.Module:
    """The same with the weights of two-dimensional convolutions in that order."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return model

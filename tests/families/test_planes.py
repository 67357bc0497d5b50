"""What the public networks say to another number of channels or axes, and to widths that their norms cannot have."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_vae import vae_model
from torch import Tensor, nn

from .table import ROWS, random_model

pytestmark = pytest.mark.usefixtures("one_thread")

DD: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "in_channels": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 4,
    "resolution": 32,
}
BLOCK: dict[str, Any] = {"in_channels": 32, "out_channels": 32, "temb_channels": 0, "dropout": 0.0}


def built(name: str, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(vae_model, name)(*args, **options).eval()


MODULES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Encoder": (built("Encoder", **DD), (1, 3, 16, 16)),
    "Decoder": (built("Decoder", **DD), (1, 4, 8, 8)),
    "VideoDecoder": (built("VideoDecoder", **DD, video_kernel_size=[3, 1, 1]), (2, 4, 8, 8)),
    "ResnetBlock": (built("ResnetBlock", **BLOCK), (1, 32, 8, 8)),
    "VideoResBlock": (built("VideoResBlock", **BLOCK), (2, 32, 8, 8)),
    "AttnBlock": (built("AttnBlock", 32), (1, 32, 8, 8)),
    "AttnVideoBlock": (built("AttnVideoBlock", 32), (2, 32, 4, 4)),
    "LinAttnBlock": (built("LinAttnBlock", 32), (1, 32, 8, 8)),
    "AE3DConv": (built("AE3DConv", 32, 3, video_kernel_size=[3, 1, 1], kernel_size=3, padding=1), (2, 32, 8, 8)),
    "Upsample": (built("Upsample", 4), (1, 4, 8, 8)),
    "Downsample": (built("Downsample", 4), (1, 4, 8, 8)),
    "AutoencoderTinyBlock": (built("AutoencoderTinyBlock", 8, 8), (1, 8, 6, 6)),
    "EncoderTiny": (built("EncoderTiny", 3, 4, (1, 1), (8, 8), "relu"), (1, 3, 8, 8)),
    "DecoderTiny": (built("DecoderTiny", 4, 3, (1, 1), (8, 8), 2, "relu", "nearest"), (1, 4, 8, 8)),
    "AutoencoderTiny": (built("AutoencoderTiny"), (1, 3, 16, 16)),
    "AutoencoderKL": (built("AutoencoderKL", 4, DD), (1, 3, 16, 16)),
    "Model": (built("Model", **{k: v for k, v in DD.items() if k != "z_channels"}, use_timestep=False), (1, 3, 16, 16)),
}


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*: expected [^\n]*, got [^\n]*: [^\n]+$") as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", MODULES)
def test_other_channels_and_axes(name: str) -> None:
    make, shape = MODULES[name]
    module, x = make(), torch.rand(shape)
    for wrong in (x[:, :-1], torch.cat([x, x[:, :1]], 1), x[:, :, 0], x[..., None], x[:, None]):
        refused(lambda: module(wrong), str(tuple(wrong.shape)))  # noqa: B023
    for kind in (torch.uint8, torch.int64, torch.bool):
        way = "x / 127.5 - 1" if kind == torch.uint8 else "convert it"
        way = "pass what encode returned" if "Decoder" in name else way
        refused(lambda: module(x.to(kind)), f"got {kind}: ", way)  # noqa: B023
    if name != "Model":
        refused(lambda: module(x[0]), "add a batch axis")
        refused(lambda: module(x.movedim(1, -1)), "put the channels second")
        for wrong in (None, "x", [1]):
            if not name.startswith("AutoencoderTiny"):
                refused(lambda: module(wrong), "got ")  # noqa: B023
    with torch.no_grad():
        module(x)


def test_methods_of_autoencoders() -> None:
    model: Any = vae_model.AutoencoderKL(4, DD)
    tiny: Any = vae_model.AutoencoderTiny()
    for call in (
        lambda: model.encode(torch.rand(1, 4, 16, 16)),
        lambda: model.decode(torch.rand(1, 3, 4, 4)),
        lambda: model.decode(torch.rand(4, 4, 4)),
        lambda: random_model(ROWS["Flux.2"]).decode(torch.rand(1, 32, 8, 8)),
        lambda: tiny.encode(torch.rand(1, 4, 16, 16)),
        lambda: tiny.decode(torch.rand(1, 3, 4, 4)),
    ):
        refused(call, "expected (B, ")


@pytest.mark.parametrize("name", ROWS)
def test_bytes_are_no_images_nor_latents_of_any_family(name: str) -> None:
    row = ROWS[name]
    model = random_model(row)
    for method, channels in (("encode", row.config.image_channels[0]), ("decode", row.channels)):
        planes = torch.zeros(1, channels, 32, 32, dtype=torch.uint8)
        refused(lambda: getattr(model, method)(planes), "expected floats (B, ", "got torch.uint8")  # noqa: B023


@pytest.mark.parametrize("channels", [1, 7, 9])
def test_moments_without_a_half(channels: int) -> None:
    moments = torch.rand(1, channels, 4, 4)
    for call in (vae_model.DiagonalGaussianDistribution, vae_model.DiagonalGaussianRegularizer()):
        refused(lambda: call(moments), f"got {channels} channels: build the encoder with double_z=True")  # noqa: B023
    for wrong in (None, torch.rand(8), [1]):
        refused(lambda: vae_model.DiagonalGaussianDistribution(wrong), "posterior: expected moments (B, 2C, ...)")  # noqa: B023
    refused(lambda: vae_model.DiagonalGaussianRegularizer(reduction="none"), "reduction: expected 'sum' or 'mean'")


@pytest.mark.parametrize(
    ("changes", "found", "way"),
    [
        ({"ch": 8}, "multiples of 32, the groups of its norms, got 8, 16", "say num_groups=8 beside it"),
        ({"ch": 48}, "multiples of 32, the groups of its norms, got 48, 96", "say num_groups=16 beside it"),
        ({"ch": 32, "num_groups": 12}, "multiples of 12, the groups of its norms, got 32, 64", "num_groups=32"),
        ({"ch": 32, "ch_mult": (1, 1.5)}, "got 32, 48", "num_groups=16"),
    ],
)
def test_widths_that_the_norms_cannot_have(changes: dict[str, Any], found: str, way: str) -> None:
    fixed = {**DD, **changes, "num_groups": int(re.sub(r"\D", "", way))}
    for name in ("Encoder", "Decoder"):
        kind: Any = getattr(vae_model, name)
        refused(lambda: kind(**{**DD, **changes}), f"{name}: expected ch and ch * ch_mult to be ", found, way)  # noqa: B023
        kind(**fixed)  # what the line says works
    refused(lambda: vae_model.AutoencoderKL(4, {**DD, **changes}), found, way)
    vae_model.AutoencoderKL(4, fixed)


SHAPES = ["Encoder", "Decoder", "ResnetBlock", "AttnBlock", "Upsample", "Downsample", "AutoencoderTinyBlock"]


@pytest.mark.parametrize("name", SHAPES)
def test_networks_are_still_exported_compiled_and_traced(name: str) -> None:
    make, shape = MODULES[name]
    module, x = make(), torch.rand(shape)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = module(x)
        dynamic = {2: torch.export.Dim("h", min=2, max=64) * 2, 3: torch.export.Dim("w", min=2, max=64) * 2}
        exported = torch.export.export(module, (x,), dynamic_shapes=(dynamic,) if "sample" in name else None)
        torch.testing.assert_close(exported.module()(x), expected, rtol=0, atol=1e-5)
        if name not in ("Encoder", "Decoder", "AttnBlock"):  # attention's choice is not for one graph
            compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of group_norm itself
        traced: Any = torch.jit.trace(module, x, check_trace=False)
        torch.testing.assert_close(traced(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Downsample", "AutoencoderTinyBlock"])
def test_layers_that_could_be_scripted_still_can(name: str) -> None:
    make, shape = MODULES[name]
    module: nn.Module = make()
    x: Tensor = torch.rand(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted: Any = torch.jit.script(module)
    torch.testing.assert_close(scripted(x), module(x), rtol=0, atol=1e-6)

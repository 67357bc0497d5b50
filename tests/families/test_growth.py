"""A family that does not exist, written here alone, does all that families do: no line of the product knows of it.

Two levels of SiLU blocks with RMS norm: the proof that a new family is one object in the table.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, load_vae, save
from exact_vae.model_management.vae_plan import plan_file
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.exact.layer import PixelNorm
from exact_vae.vae_model.exact.ops.convolve import Convolve
from exact_vae.vae_model.exact.ops.residual import Residual
from exact_vae.vae_model.exact.ops.upsample import Upsample
from exact_vae.vae_model.exact.program import Program, make_program
from exact_vae.vae_model.exact.read import read_conv
from exact_vae.vae_model.families.coder import Coder
from exact_vae.vae_model.families.family import Family, Shapes
from exact_vae.vae_model.families.hints import Hints
from exact_vae.vae_model.families.layout import Layout
from exact_vae.vae_model.families.table import FAMILIES
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

STEMS = ("first", "wide", "change", "narrow", "last")


class Length(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12) * self.gamma


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.length1, self.length2 = Length(channels), Length(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.length1(x)))
        return x + self.conv2(functional.silu(self.length2(h)))


class HalfNet(nn.Module):
    """first, a block, a change of size, a block, last."""

    def __init__(self, ends: tuple[int, int], widths: tuple[int, int], up: bool) -> None:
        super().__init__()
        self.up = up
        self.first = nn.Conv2d(ends[0], widths[0], 3, padding=1)
        self.wide, self.narrow = Block(widths[0]), Block(widths[1])
        self.change = nn.Conv2d(*widths, 3, stride=1 if up else 2, padding=1)
        self.last = nn.Conv2d(widths[1], ends[1], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.first(x))
        x = functional.interpolate(x, scale_factor=2.0) if self.up else x
        return self.last(self.narrow(self.change(x)))


class Grown(nn.Module):
    def __init__(self, latent_channels: int, width: int) -> None:
        super().__init__()
        self.encoder = HalfNet((3, latent_channels), (width, 2 * width), up=False)
        self.decoder = HalfNet((latent_channels, 3), (2 * width, width), up=True)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


@dataclass(frozen=True)
class GrownConfig:
    latent_channels: int
    width: int
    factor: int = 2
    decode_factor: int = 2
    image_channels: tuple[int, int] = (3, 3)

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        return {"encoder": (self.width, 2 * self.width), "decoder": (2 * self.width, self.width)}


def read(half: Any) -> Program:
    def block(layer: Any, name: str) -> Residual:
        norms = [PixelNorm(norm, name, len(norm.gamma)) for norm in (layer.length1, layer.length2)]
        convs = [read_conv(conv, name) for conv in (layer.conv1, layer.conv2)]
        return Residual(norms[0], convs[0], norms[1], convs[1], None)

    change = read_conv(half.change, "change", stride=1 if half.up else 2)
    resample = Upsample(change) if half.up else Convolve(change)
    first, last = (Convolve(read_conv(getattr(half, name), name)) for name in ("first", "last"))
    return make_program([first, block(half.wide, "wide"), resample, block(half.narrow, "narrow"), last])


class GrownFamily(Family):
    name = "grown"
    title = "two levels of SiLU blocks with RMS norm"
    layouts = (
        Layout(
            "plain",
            "grown",
            ("decoder.wide.length1.gamma",),
            tuple((f"{{c}}.{stem}.{{rest}}", f"{{c}}.{stem}.{{rest}}") for stem in STEMS),
        ),
        Layout(
            "numbered",
            "grown",
            ("decoder.1.length1.gamma",),
            tuple((f"{{c}}.{number}.{{rest}}", f"{{c}}.{stem}.{{rest}}") for number, stem in enumerate(STEMS)),
        ),
    )
    classes = frozenset({"Grown"})
    children = frozenset({"encoder", "decoder"})

    def core_keys(self, layout: str) -> tuple[str, ...]:
        return tuple(f"{half}.{stem}.weight" for half in ("encoder", "decoder") for stem in ("first", "last"))

    def infer(self, shapes: Shapes, hints: Hints) -> GrownConfig:
        width, latent_channels = shapes["decoder.change.weight"][0], shapes["decoder.first.weight"][1]
        return GrownConfig(latent_channels, width)

    def build(self, config: GrownConfig) -> nn.Module:
        return Grown(config.latent_channels, config.width)

    def owns(self, model: nn.Module) -> bool:
        return isinstance(model, Grown)

    def untiled_elements(self, config: GrownConfig, direction: str) -> float:
        return 4.0 * config.width

    def decoder(self, model: Any) -> Coder:
        return Coder(read(model.decoder))

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        return Coder(read(model.encoder))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Grown:
    monkeypatch.setitem(FAMILIES, "grown", GrownFamily())
    torch.manual_seed(0)
    return Grown(6, 24).requires_grad_(False)


@pytest.fixture
def file(model: Grown, tmp_path: Path) -> Path:
    save(model, tmp_path / "grown.safetensors")
    return tmp_path / "grown.safetensors"


@pytest.fixture
def vae(file: Path) -> VAE:
    return load_vae(file, device="cpu", dtype="float32")


def test_it_is_found_saved_and_converted(model: Grown, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    assert convert_vae([str(file)], other, "numbered") == ([other], [])
    assert "decoder.1.length1.gamma" in load_file(other)
    for source in (file, other, model):
        found = load_vae(source, device="cpu", dtype="float32").first_stage_model.state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


def test_it_is_told_of(file: Path, vae: VAE) -> None:
    facts = describe_vae([str(file)])
    assert (facts["family"], facts["widths"]) == (GrownFamily.title, "encoder 24, 48; decoder 48, 24")
    assert repr(vae).startswith(f"VAE({GrownFamily.title}, latents of 6 channels with 2 x 2 pixels a cell")
    plan = plan_file([str(file)], "2048x2048", "decode", memory="40MiB", host_memory="1GiB")
    assert 0 < plan.peak_bytes <= 40 * 2**20


@pytest.mark.parametrize("share", [1.0, 0.8, 0.6])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_it_runs_exactly_under_every_budget(model: Grown, vae: VAE, direction: str, share: float) -> None:
    """Shares of what a run takes that nothing keeps short."""
    generator, double = torch.Generator().manual_seed(1), copy.deepcopy(model).double()
    slope = torch.linspace(0, 1, 240)[:, None] + torch.linspace(0, 2, 320)
    if direction == "decode":
        z = torch.randn(1, 6, 120, 160, generator=generator) + slope[::2, ::2]
        expected = (double.decode(z.double()) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        run = partial(vae.decode, z)
    else:
        x = torch.rand(1, 240, 320, 3, generator=generator) / 4 + slope[..., None] / 4
        expected = double.encode(x.double().movedim(-1, 1) * 2 - 1)
        run = partial(vae.encode, x)
    run()
    assert vae.last_plan is not None
    budget = int(share * vae.last_plan.peak_bytes)
    actual = run(memory=budget)
    assert vae.last_plan.peak_bytes <= budget
    assert_exact(actual, expected.float(), expected)

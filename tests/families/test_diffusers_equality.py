"""Our models against diffusers' with the same random weights: AutoencoderKL to 1e-5, AutoencoderTiny exactly.

Levels, layers per block, latent channels, quant convolutions, mid attention and norm groups are covered by a set in
which every triple of values meets, plus the corners (the least and the most of each, with all parts and with none).
"""

from itertools import cycle, product
from typing import Any

import pytest
import torch
from exact_vae.tests.covering import Case, covering_set, groups_of
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import to_layout
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

# float32 through up to fifty layers whose results are about 4: the only difference is the order in which sums of up to
# a thousand products are taken, so 1e-5 leaves room for other kernels.
CLOSE = {"rtol": 0, "atol": 1e-5}

AXES = {
    "levels": (2, 3, 4, 5),
    "layers_per_block": (1, 2, 3),
    "latent_channels": (3, 4, 16, 32),
    "norm_num_groups": (8, 16, 32),
    "use_quant_conv": (True, False),
    "use_post_quant_conv": (True, False),
    "mid_block_add_attention": (True, False),
}
WIDTHS = (32, 64, 32, 32, 64)


def corners() -> list[Case]:
    ends = product(*((values[0], values[-1]) for values in list(AXES.values())[:4]))
    return [(*end, parts, parts, parts) for end in ends for parts in (True, False)]


CASES = sorted({*covering_set(*AXES.values(), together=3), *corners()})


pytestmark = pytest.mark.usefixtures("one_thread")


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Every weight random, norms and biases included, so that activations stay about 1."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_matrix = parameter.ndim > 1
        parameter.data = noise / parameter[0].numel() ** 0.5 if is_matrix else 0.2 * noise
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data += 1


def make_theirs(generator: torch.Generator, cls: str = "AutoencoderKL", **options: Any) -> Any:
    with torch.device("meta"):  # their own initialisation would only take time
        model = getattr(diffusers, cls)(**options)
    randomise(model.to_empty(device="cpu"), generator)
    return model.eval()


def kl_options(
    levels: int, down: str = "DownEncoderBlock2D", up: str = "UpDecoderBlock2D", **more: Any
) -> dict[str, Any]:
    return {
        "block_out_channels": WIDTHS[:levels],
        "down_block_types": (down,) * levels,
        "up_block_types": (up,) * levels,
    } | more


def assert_kl_equal(theirs: Any, x: Tensor, z: Tensor, weights: dict[str, Tensor] | None = None) -> None:
    groups = theirs.config.norm_num_groups
    ours: Any = load_model(weights or theirs.state_dict(), config={"norm_num_groups": groups}).model
    with torch.inference_mode():
        posterior = theirs.encode(x).latent_dist
        moments, _ = ours.encode(x, unregularized=True)
        assert posterior.parameters.std() > 0.1  # A comparison of zeros would show nothing.
        torch.testing.assert_close(moments, posterior.parameters, **CLOSE)
        torch.testing.assert_close(ours.encode(x), posterior.mode(), **CLOSE)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, **CLOSE)


def image_and_latent(
    levels: int, channels: int, generator: torch.Generator, size: tuple[int, int] = (6, 5)
) -> tuple[Tensor, Tensor]:
    height, width = (side * 2 ** (levels - 1) for side in size)
    x = torch.rand(1, 3, height, width, generator=generator) * 2 - 1
    return x, torch.randn(1, channels, *size, generator=generator)


def test_the_cases_hold_every_triple() -> None:
    every = set().union(*(groups_of(case, 3) for case in product(*AXES.values())))
    assert set().union(*(groups_of(case, 3) for case in CASES)) == every


def compare(case: Case) -> None:
    generator = torch.Generator().manual_seed(70)
    levels, *_ = case
    options = dict(zip(AXES, case, strict=True))
    del options["levels"]
    theirs = make_theirs(generator, **kl_options(levels, **options))
    assert_kl_equal(theirs, *image_and_latent(levels, options["latent_channels"], generator, size=(3, 2)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_kl_equals_diffusers(case: Case) -> None:
    compare(case)


@pytest.mark.slow
@pytest.mark.parametrize("levels", AXES["levels"])
def test_kl_equals_diffusers_in_every_structure(levels: int) -> None:
    """All combinations of layers, quant convolutions and attention; channels and groups, mere numbers, take turns."""
    numbers = cycle(product(AXES["latent_channels"], AXES["norm_num_groups"]))
    for layers, *parts in product(AXES["layers_per_block"], *list(AXES.values())[4:]):
        compare((levels, layers, *next(numbers), *parts))


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_kl_equals_diffusers_on_larger_latents(levels: int) -> None:
    generator = torch.Generator().manual_seed(71)
    theirs = make_theirs(generator, **kl_options(levels))
    assert_kl_equal(theirs, *image_and_latent(levels, 4, generator))


@pytest.mark.parametrize("size", [(37, 45), (8, 15), (71, 33)])
def test_kl_equals_diffusers_at_sizes_that_round_down(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(72)
    theirs = make_theirs(generator, **kl_options(4, norm_num_groups=16))
    x = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    assert_kl_equal(theirs, x, torch.randn(3, 4, 1, 5, generator=generator))


@pytest.mark.parametrize(("down", "up"), [("Attn", "Attn"), ("Attn", ""), ("", "Attn")])
def test_kl_equals_diffusers_with_attention_in_levels(down: str, up: str) -> None:
    generator = torch.Generator().manual_seed(73)
    theirs = make_theirs(generator, **kl_options(3, f"{down}DownEncoderBlock2D", f"{up}UpDecoderBlock2D"))
    x, z = image_and_latent(3, 4, generator)
    assert_kl_equal(theirs, x, z)
    assert any(".down_blocks.1.attentions.0." in key for key in theirs.state_dict()) is bool(down)


def test_kl_equals_diffusers_from_files_with_old_attention_names() -> None:
    generator = torch.Generator().manual_seed(74)
    theirs = make_theirs(generator, **kl_options(3))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights: dict[str, Tensor] = {}
    for key, tensor in theirs.state_dict().items():
        for new_name, old_name in old.items():
            key = key.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}.")
        weights[key] = tensor
    assert_kl_equal(theirs, *image_and_latent(3, 4, generator), weights)


@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 1), (4, 3)])
def test_kl_equals_diffusers_with_other_image_channels(in_channels: int, out_channels: int) -> None:
    generator = torch.Generator().manual_seed(75)
    theirs = make_theirs(generator, **kl_options(2, in_channels=in_channels, out_channels=out_channels))
    x = torch.rand(1, in_channels, 8, 6, generator=generator) * 2 - 1
    assert_kl_equal(theirs, x, torch.randn(1, 4, 4, 3, generator=generator))


def test_diffusers_loads_what_we_write() -> None:
    generator = torch.Generator().manual_seed(76)
    theirs = make_theirs(generator, **kl_options(3))
    written = to_layout(load_model(theirs.state_dict()).model, "diffusers")
    assert {key: tensor.shape for key, tensor in written.items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    assert all(written[key].equal(tensor) for key, tensor in theirs.state_dict().items())


TINY = list(product((8, 20), ((1, 3, 3, 3), (1, 1), (2, 0, 1), (1, 2, 1, 1, 1)), (4, 16, 5)))


@pytest.mark.parametrize(("width", "blocks", "channels"), TINY)
def test_tiny_equals_diffusers_exactly(width: int, blocks: tuple[int, ...], channels: int) -> None:
    # The same operations on the same numbers in the same order: no tolerance.
    generator = torch.Generator().manual_seed(80)
    theirs = make_theirs(
        generator,
        "AutoencoderTiny",
        encoder_block_out_channels=(width,) * len(blocks),
        decoder_block_out_channels=(width + 4,) * len(blocks),
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        latent_channels=channels,
    )
    loaded = load_model(theirs.state_dict())
    assert loaded.layouts == ("taesd-diffusers",)
    ours: Any = loaded.model
    factor = 2 ** (len(blocks) - 1)
    x = torch.rand(2, 3, 3 * factor + 1, 2 * factor, generator=generator) * 2 - 1
    z = 3 * torch.randn(2, channels, 3, 2, generator=generator)
    with torch.inference_mode():
        assert torch.equal(ours.encode(x).latents, theirs.encode(x).latents)
        assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample)
        assert theirs.decode(z).sample.std() > 0.1  # A comparison of constants would show nothing.


def test_tiny_scales_latents_as_diffusers_does() -> None:
    ours: Any = load_model(make_theirs(torch.Generator().manual_seed(81), "AutoencoderTiny").state_dict()).model
    theirs = diffusers.AutoencoderTiny()
    x = torch.linspace(-7, 7, 101)
    assert torch.equal(ours.scale_latents(x), theirs.scale_latents(x))
    assert torch.equal(ours.unscale_latents(x), theirs.unscale_latents(x))

"""From modules to steps: which, in what order, with which numbers. No arithmetic is done here."""

from typing import Any

import pytest
import torch
from exact_vae.tests.exact.programs import build_program
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.ops.attend import Attend
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from torch import nn

LDM: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "num_groups": 4}


def decoder(**options: Any) -> Any:
    return Decoder(**{**LDM, "out_ch": 3, **options}).eval()


def encoder(**options: Any) -> Any:
    return Encoder(**{**LDM, "in_channels": 3, **options}).eval()


def tiny(**options: Any) -> Any:
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(8, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        **options,
    ).eval()


def outline(program: Program) -> list[str]:
    """Each op in a word and the name of its (last) convolution."""
    words: list[str] = []
    for op in program.ops:
        words.append(f"{type(op).__name__} {op.name}")
    return words


def test_the_steps_of_a_decoder() -> None:
    program = build_program(decoder(), before=nn.Conv2d(2, 4, 1))
    assert outline(program) == [
        "Convolve post_quant_conv",
        "Convolve conv_in",
        "Residual mid.block_1.conv2",
        "Attend mid.attn_1.proj_out",
        "Residual mid.block_2.conv2",
        "Residual up.1.block.0.conv2",
        "Residual up.1.block.1.conv2",
        "Upsample up.1.upsample.conv",
        "Residual up.0.block.0.conv2",
        "Residual up.0.block.1.conv2",
        "Convolve conv_out",
    ]
    assert program.levels == (0,) * 7 + (1,) * 4
    assert (program.level_count, program.in_channels, program.out_channels) == (2, 2, 3)


def test_the_steps_of_an_encoder() -> None:
    program = build_program(encoder(), after=nn.Conv2d(8, 6, 1))
    assert outline(program) == [
        "Convolve conv_in",
        "Residual down.0.block.0.conv2",
        "Convolve down.0.downsample.conv",
        "Residual down.1.block.0.conv2",
        "Residual mid.block_1.conv2",
        "Attend mid.attn_1.proj_out",
        "Residual mid.block_2.conv2",
        "Convolve conv_out",
        "Convolve quant_conv",
    ]
    assert program.levels == (0, 0) + (1,) * 7
    assert (program.level_count, program.in_channels, program.out_channels) == (2, 3, 6)


def test_the_steps_of_tiny_halves() -> None:
    program = build_program(tiny(midblock_gn=True).decoder)
    assert outline(program) == [
        "Convolve layers.0",
        "TinyBlock layers.2.conv.4",
        "Upsample layers.4",
        "TinyBlock layers.5.conv.4",
        "Convolve layers.6",
    ]
    blocks: list[Any] = [program.ops[1], program.ops[3]]
    assert [block.pool is not None for block in blocks] == [True, False]
    assert program.ops[0].after == "relu"  # type: ignore[union-attr]
    assert program.levels == (0, 0, 1, 1, 1)
    program = build_program(tiny().encoder)
    assert outline(program)[2:4] == ["Convolve layers.2", "TinyBlock layers.3.conv.4"]
    assert program.levels == (0, 0, 1, 1, 1)
    assert (program.in_channels, program.out_channels) == (3, 4)


def test_numbers_are_read_from_the_modules() -> None:
    model = decoder(num_groups=2)
    model.conv_in.padding_mode = "reflect"
    model.up[0].block[0].norm1.eps = 0.5
    model.norm_out.num_groups = 8
    steps: list[Any] = list(build_program(model).ops)
    assert (steps[0].conv.mode, steps[0].conv.circular) == ("reflect", False)
    assert (steps[1].norm1.groups, steps[1].norm1.eps, steps[1].norm1.channels) == (2, 1e-6, 16)
    assert steps[7].norm1.eps == 0.5
    assert steps[7].shortcut.kernel == 1
    assert steps[8].shortcut is None
    assert (steps[-1].norm.groups, steps[-1].before, steps[-1].after) == (8, "silu", None)


def test_options_of_the_coders() -> None:
    assert not any(isinstance(step, Attend) for step in build_program(decoder(attn_type="none")).ops)
    in_levels = build_program(encoder(attn_resolutions=(256,), resolution=256))
    assert outline(in_levels)[1:3] == ["Residual down.0.block.0.conv2", "Attend down.0.attn.0.proj_out"]
    assert build_program(decoder(tanh_out=True)).ops[-1].after == "tanh"  # type: ignore[union-attr]
    assert outline(build_program(decoder(give_pre_end=True)))[-1] == "Residual up.0.block.1.conv2"
    assert build_program(decoder(give_pre_end=True)).out_channels == 8


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 10), (8, 3)])
def test_sizes_are_those_of_the_modules(height: int, width: int) -> None:
    for model in (decoder(), encoder(), tiny().decoder, tiny().encoder):
        program = build_program(model)
        height, width = max(2, height), max(2, width)
        network = getattr(model, "layers", model)
        with torch.inference_mode():
            expected = network(torch.zeros(1, program.in_channels, height, width)).shape[1:]
        size = Extent(program.in_channels, height, width)
        for op in program.ops:
            size = op.extent(size)
        assert size == Extent(*expected)


def test_a_program_holds_modules_and_no_weights() -> None:
    model = decoder()
    program: Any = build_program(model)
    model.conv_in.weight = nn.Parameter(torch.zeros_like(model.conv_in.weight))
    assert program.ops[0].conv.module is model.conv_in
    model.to("meta")
    assert build_program(model).level_count == 2

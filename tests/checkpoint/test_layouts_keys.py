"""The rename rules for any configuration: invertible, unambiguous, and of one mind about the number of levels."""

from dataclasses import replace

import pytest
import torch
from exact_vae.vae_model.checkpoint.detect import detect
from exact_vae.vae_model.checkpoint.keys import count_levels, is_attention_weight, to_ours, to_theirs
from exact_vae.vae_model.checkpoint.load import inspect_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.families.family import Config
from exact_vae.vae_model.families.layout import Layout
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.table import FAMILIES, all_layouts
from exact_vae.vae_model.families.tiny.config import TinyConfig
from exact_vae.vae_model.files.weights import open_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

LONG = settings.get_current_profile_name() == "fuzz-10000"
UNTIMED = settings(max_examples=60 if LONG else 24, deadline=None, derandomize=True)
"""No deadline, for a busy machine is no failure; the same examples every time."""


@st.composite
def level_configs(draw: st.DrawFn, count: int, half: str) -> LevelsConfig:
    widths = draw(st.lists(st.sampled_from((8, 16, 24, 40)), min_size=count, max_size=count))
    kind = draw(st.sampled_from(("vanilla", "vanilla", "none")))
    attn = draw(st.sets(st.integers(0, count - 1))) if kind == "vanilla" else ()
    blocks = draw(st.integers(1, 3))
    ch = draw(st.sampled_from((8, 24, widths[0]))) if half == "encoder" else widths[0]
    return LevelsConfig(ch, tuple(widths), blocks, tuple(sorted(attn)), kind)


@st.composite
def kl_configs(draw: st.DrawFn) -> KLConfig:
    count = draw(st.integers(2, 6))
    halves = draw(st.sampled_from(("both", "both", "encoder", "decoder")))
    encoder = draw(level_configs(count, "encoder")) if halves != "decoder" else None
    decoder = draw(level_configs(count, "decoder")) if halves != "encoder" else None
    quant = encoder is not None and draw(st.booleans())
    post_quant = decoder is not None and draw(st.booleans())
    z = draw(st.integers(1, 40))
    embed = draw(st.integers(1, 40)) if quant or post_quant else z
    return KLConfig(
        z_channels=z,
        embed_dim=embed if (quant or encoder is None) and (post_quant or decoder is None) else z,
        encoder=encoder,
        decoder=decoder,
        in_channels=draw(st.integers(1, 5)) if encoder else 3,
        out_ch=draw(st.integers(1, 5)) if decoder else 3,
        double_z=draw(st.booleans()) if halves == "both" else True,
        quant_conv=quant,
        post_quant_conv=post_quant,
        num_groups=8,
    )


@st.composite
def tiny_configs(draw: st.DrawFn) -> TinyConfig:
    def half() -> tuple[tuple[int, ...], tuple[int, ...]]:
        stages = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=count, max_size=count))
        widths, blocks = zip(*stages, strict=True)
        return widths, blocks

    count = draw(st.integers(1, 5))
    (encoder_widths, encoder_blocks), (decoder_widths, decoder_blocks) = half(), half()
    return TinyConfig(
        draw(st.integers(1, 40)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        encoder_widths,
        decoder_widths,
        (*encoder_blocks[:-1], encoder_blocks[-1] + 1),
        (decoder_blocks[0] + 1, *decoder_blocks[1:]),
        midblock_gn=draw(st.booleans()),
    )


def build(config: Config) -> nn.Module:
    with torch.device("meta"):
        return FAMILIES["kl" if isinstance(config, KLConfig) else "tiny"].build(config)


def layouts_of(config: Config) -> list[Layout]:
    return [row for row in all_layouts() if row.family == ("kl" if isinstance(config, KLConfig) else "tiny")]


@UNTIMED
@given(st.one_of(kl_configs(), tiny_configs()))
def test_every_key_comes_back(config: Config) -> None:
    keys = list(build(config).state_dict())
    levels = count_levels(keys)
    for layout in layouts_of(config):
        theirs = {key: to_theirs(key, layout, levels) for key in keys}
        named = [name for name in theirs.values() if name is not None]
        assert len(set(named)) == len(named)
        whole = layout.name not in ("taesd-encoder", "taesd-decoder")
        assert len(named) == (len(keys) if whole else sum(layout.name[6:] in key for key in keys))
        assert all(to_ours(name, layout, levels) == key for key, name in theirs.items() if name is not None)
        assert count_levels(named) == levels


@UNTIMED
@given(st.one_of(kl_configs(), tiny_configs()))
def test_exactly_one_rule_knows_each_key(config: Config) -> None:
    keys = list(build(config).state_dict())
    levels = count_levels(keys)
    for layout in layouts_of(config):
        rows = [replace(layout, rules=(rule,), spellings=()) for rule in layout.rules]
        for key in keys:
            name = to_theirs(key, layout, levels)
            if name is not None:
                assert sum(to_theirs(key, row, levels) is not None for row in rows) == 1, key
                assert sum(to_ours(name, row, levels) is not None for row in rows) == 1, name
                assert to_ours(name, layout, levels) == key, name  # other spellings do not change what it means


@UNTIMED
@given(st.one_of(kl_configs(), tiny_configs()))
def test_shapes_alone_tell_the_configuration(config: Config) -> None:
    model = build(config)
    hints = {"norm_num_groups": config.num_groups} if isinstance(config, KLConfig) else {}
    for layout in layouts_of(config):
        if layout.name not in ("taesd-encoder", "taesd-decoder"):
            assert inspect_model(to_layout(model, layout.name), hints)[2] == config


@UNTIMED
@given(kl_configs())
def test_no_layout_is_taken_for_another(config: KLConfig) -> None:
    model = build(config)
    kinds = {half.attn_type for half in (config.encoder, config.decoder) if half}
    for layout in layouts_of(config):
        # Without attention old and new diffusers files are the same.
        name = "diffusers" if layout.name == "diffusers-old" and kinds == {"none"} else layout.name
        assert detect(open_weights(to_layout(model, layout.name))).layout.name == name


@pytest.mark.parametrize(
    ("ch", "widths", "groups"),
    [(32, (32, 64), 32), (16, (16, 32), 16), (24, (24, 48), 8), (16, (32, 64), 16)],
)
def test_groups_are_guessed_where_nothing_tells(ch: int, widths: tuple[int, ...], groups: int) -> None:
    # 32 where that divides all widths, the one behind the encoder's first convolution too.
    encoder, decoder = LevelsConfig(ch, widths, 1), LevelsConfig(widths[0], widths, 1)
    config = KLConfig(4, 4, encoder, decoder, num_groups=groups)
    assert inspect_model(build(config).state_dict())[2] == config


@pytest.mark.parametrize(
    ("levels", "key", "theirs"),
    [
        (4, "decoder.up.0.block.2.nin_shortcut.weight", "decoder.up_blocks.3.resnets.2.conv_shortcut.weight"),
        (4, "decoder.up.3.upsample.conv.bias", "decoder.up_blocks.0.upsamplers.0.conv.bias"),
        (3, "decoder.up.0.block.0.conv1.weight", "decoder.up_blocks.2.resnets.0.conv1.weight"),
        (5, "decoder.up.4.attn.1.q.weight", "decoder.up_blocks.0.attentions.1.to_q.weight"),
        (5, "encoder.down.4.attn.0.proj_out.bias", "encoder.down_blocks.4.attentions.0.to_out.0.bias"),
        (4, "encoder.down.1.downsample.conv.weight", "encoder.down_blocks.1.downsamplers.0.conv.weight"),
        (4, "encoder.mid.block_2.norm1.weight", "encoder.mid_block.resnets.1.norm1.weight"),
        (4, "decoder.mid.attn_1.norm.bias", "decoder.mid_block.attentions.0.group_norm.bias"),
        (4, "decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
        (4, "post_quant_conv.bias", "post_quant_conv.bias"),
    ],
)
def test_names_of_diffusers(levels: int, key: str, theirs: str) -> None:
    layout = next(row for row in all_layouts() if row.name == "diffusers")
    assert to_theirs(key, layout, levels) == theirs
    assert to_ours(theirs, layout, levels) == key


def test_names_of_taesd() -> None:
    rows = {row.name: row for row in all_layouts()}
    # The bare decoder counts the clamp of the latents as layer 0.
    assert to_ours("1.weight", rows["taesd-decoder"], 0) == "decoder.layers.0.weight"
    assert to_ours("3.conv.0.weight", rows["taesd-decoder"], 0) == "decoder.layers.2.conv.0.weight"
    assert to_ours("0.weight", rows["taesd-decoder"], 0) is None
    assert to_ours("0.weight", rows["taesd-encoder"], 0) == "encoder.layers.0.weight"
    assert to_ours("taesd_decoder.19.bias", rows["taesd-comfyui"], 0) == "decoder.layers.18.bias"
    assert to_ours("taesd_encoder.14.bias", rows["taesd-comfyui"], 0) == "encoder.layers.14.bias"


def test_unknown_keys_have_no_name() -> None:
    for layout in all_layouts():
        for key in ("bn.running_mean", "decoder.up_blocks.9.resnets.0.conv1.weight", "lora_up.weight", "", "encoder"):
            if layout.family == "kl":
                assert to_ours(key, layout, 4) is None


def test_attention_weights_are_recognised() -> None:
    assert is_attention_weight("decoder.mid.attn_1.q.weight")
    assert is_attention_weight("encoder.down.3.attn.1.proj_out.weight")
    assert not is_attention_weight("decoder.mid.attn_1.norm.weight")
    assert not is_attention_weight("decoder.mid.attn_1.q.bias")
    assert not is_attention_weight("decoder.mid.block_1.conv1.weight")

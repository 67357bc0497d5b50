"""Names of the ldm autoencoder's tensors in files: latent-diffusion's (ours) and diffusers', of today and before.

Source of the names: latent-diffusion (MIT) and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from dataclasses import replace

from ..layout import Layout, Rule
from ..spellings import attention_spellings

OWN_RULES: tuple[Rule, ...] = tuple(
    (template, template)
    for template in (
        "{c}.conv_in.{p}",
        "{c}.conv_out.{p}",
        "{c}.norm_out.{p}",
        "encoder.down.{i}.block.{j}.{m}.{p}",
        "encoder.down.{i}.attn.{j}.{m}.{p}",
        "encoder.down.{i}.downsample.conv.{p}",
        "decoder.up.{i}.block.{j}.{m}.{p}",
        "decoder.up.{i}.attn.{j}.{m}.{p}",
        "decoder.up.{i}.upsample.conv.{p}",
        "{c}.mid.block_{j}.{m}.{p}",
        "{c}.mid.attn_1.{m}.{p}",
        "quant_conv.{p}",
        "post_quant_conv.{p}",
    )
)


OWN_SPELLINGS = attention_spellings(
    (place, place) for place in ("encoder.down.{i}.attn.{j}", "decoder.up.{i}.attn.{j}", "{c}.mid.attn_1")
)
_DIFFUSERS_ATTENTIONS: tuple[Rule, ...] = (
    ("encoder.down_blocks.{i}.attentions.{j}", "encoder.down.{i}.attn.{j}"),
    ("decoder.up_blocks.{i~}.attentions.{j}", "decoder.up.{i}.attn.{j}"),
    ("{c}.mid_block.attentions.0", "{c}.mid.attn_1"),
)
DIFFUSERS_SPELLINGS = attention_spellings(_DIFFUSERS_ATTENTIONS)
DIFFUSERS_BLOCKS: tuple[Rule, ...] = (
    ("encoder.down_blocks.{i}.resnets.{j}", "encoder.down.{i}.block.{j}"),
    ("decoder.up_blocks.{i~}.resnets.{j}", "decoder.up.{i}.block.{j}"),
    ("{c}.mid_block.resnets.0", "{c}.mid.block_1"),
    ("{c}.mid_block.resnets.1", "{c}.mid.block_2"),
)


def diffusers_rules(attention_names: dict[str, str], blocks: tuple[Rule, ...] = DIFFUSERS_BLOCKS) -> tuple[Rule, ...]:
    """Rules of diffusers' AutoencoderKL; the names inside attention changed over time."""
    rules: list[Rule] = [
        ("{c}.conv_in.{p}", "{c}.conv_in.{p}"),
        ("{c}.conv_out.{p}", "{c}.conv_out.{p}"),
        ("{c}.conv_norm_out.{p}", "{c}.norm_out.{p}"),
        ("quant_conv.{p}", "quant_conv.{p}"),
        ("post_quant_conv.{p}", "post_quant_conv.{p}"),
        ("encoder.down_blocks.{i}.downsamplers.0.conv.{p}", "encoder.down.{i}.downsample.conv.{p}"),
        ("decoder.up_blocks.{i~}.upsamplers.0.conv.{p}", "decoder.up.{i}.upsample.conv.{p}"),
    ]
    for theirs, ours in blocks:
        rules.append((f"{theirs}.conv_shortcut.{{p}}", f"{ours}.nin_shortcut.{{p}}"))
        rules += [(f"{theirs}.{name}.{{p}}", f"{ours}.{name}.{{p}}") for name in ("norm1", "conv1", "norm2", "conv2")]
    for theirs, ours in _DIFFUSERS_ATTENTIONS:
        rules += [(f"{theirs}.{name}.{{p}}", f"{ours}.{own}.{{p}}") for name, own in attention_names.items()]
    return tuple(rules)


ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"group_norm": "norm", "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
LDM_MARKS = ("decoder.mid.block_1.norm1.weight", "encoder.mid.block_1.norm1.weight")
DIFFUSERS_MARKS = ("decoder.mid_block.resnets.0.norm1.weight", "encoder.mid_block.resnets.0.norm1.weight")
OLD_ATTENTION_MARKS = tuple(f"{half}.mid_block.attentions.0.query.weight" for half in ("decoder", "encoder"))


LDM = Layout("ldm", "kl", LDM_MARKS, OWN_RULES, spellings=OWN_SPELLINGS, unread="told")
"""latent-diffusion's names, which are ours. Other families replace what they have otherwise."""
DIFFUSERS = Layout(
    "diffusers",
    "kl",
    DIFFUSERS_MARKS,
    diffusers_rules(ATTENTION),
    spellings=DIFFUSERS_SPELLINGS,
    linear_attention=True,
)
"""diffusers' names."""
OLD_DIFFUSERS = replace(
    DIFFUSERS, name="diffusers-old", marks=OLD_ATTENTION_MARKS, rules=diffusers_rules(OLD_ATTENTION)
)
"""The same before the layers of attention were renamed."""

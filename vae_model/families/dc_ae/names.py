"""Names of the deep compression autoencoder's tensors in files: diffusers' (ours), and the original's.

The original keeps queries, keys and values in one tensor. What stands between two levels of an encoder has one word
less in its name where it leaves pixels out. Source of the names: mit-han-lab efficientvit and diffusers (Apache-2.0),
read as facts.
"""

from __future__ import annotations

from dataclasses import replace

from ..layout import Layout, Rule

_HALVES = {"encoder": ("encoder.stages", "encoder.down_blocks"), "decoder": ("decoder.stages", "decoder.up_blocks")}
_ATTENTION = "context_module.main"
_GATED = "local_module.main"
_BLOCK: dict[str, str] = {
    "conv1.{p}": "main.conv1.conv.{p}",
    "conv2.{p}": "main.conv2.conv.{p}",
    "norm.{m}": "main.conv2.norm.{m}",
    **{f"attn.to_{name}.weight": f"{_ATTENTION}.qkv.conv.weight[{part}/3]" for part, name in enumerate("qkv")},
    "attn.to_qkv_multiscale.{j}.proj_in.weight": f"{_ATTENTION}.aggreg.{{j}}.0.weight",
    "attn.to_qkv_multiscale.{j}.proj_out.weight": f"{_ATTENTION}.aggreg.{{j}}.1.weight",
    "attn.to_out.weight": f"{_ATTENTION}.proj.conv.weight",
    "attn.norm_out.{m}": f"{_ATTENTION}.proj.norm.{{m}}",
    "conv_out.conv_inverted.{p}": f"{_GATED}.inverted_conv.conv.{{p}}",
    "conv_out.conv_depth.{p}": f"{_GATED}.depth_conv.conv.{{p}}",
    "conv_out.conv_point.{p}": f"{_GATED}.point_conv.conv.{{p}}",
    "conv_out.norm.{m}": f"{_GATED}.point_conv.norm.{{m}}",
    "conv.{p}": "main.conv.conv.{p}",
}
"""Of one layer of a level: ours -> the original's."""
_ENDS: dict[str, str] = {
    "encoder.conv_in.{p}": "encoder.project_in.conv.{p}",
    "encoder.conv_in.conv.{p}": "encoder.project_in.conv.conv.{p}",
    "encoder.conv_out.{p}": "encoder.project_out.main.op_list.0.conv.{p}",
    "decoder.conv_in.{p}": "decoder.project_in.main.conv.{p}",
    "decoder.norm_out.{m}": "decoder.project_out.op_list.0.{m}",
    "decoder.conv_out.{p}": "decoder.project_out.op_list.2.conv.{p}",
    "decoder.conv_out.conv.{p}": "decoder.project_out.op_list.2.conv.conv.{p}",
}
_DOWN = "encoder.down_blocks.{i}.{k}.conv.{p}"
_STRIDED: Rule = ("encoder.stages.{i}.op_list.{k}.main.conv.{p}", _DOWN)

_OWN_RULES: tuple[Rule, ...] = tuple(
    (name, name)
    for name in (*_ENDS, *(f"{row}.{{i}}.{{k}}.{layer}" for _, row in _HALVES.values() for layer in _BLOCK))
)
_ORIGINAL_RULES: tuple[Rule, ...] = (
    *((theirs, ours) for ours, theirs in _ENDS.items()),
    *(
        (f"{theirs}.{{i}}.op_list.{{k}}.{layer}", f"{row}.{{i}}.{{k}}.{ours}")
        for theirs, row in _HALVES.values()
        for ours, layer in _BLOCK.items()
    ),
)


def _marks(row: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Of the first layer of the first level that has any."""
    return tuple(f"{row}.{level}.{layer}.weight" for level in (0, 1) for layer in layers)


DIFFUSERS = Layout(
    "diffusers",
    "dc_ae",
    (
        *_marks("encoder.down_blocks", ("0.conv1", "0.attn.to_q")),
        *_marks("decoder.up_blocks", ("0.conv", "0.conv1", "0.attn.to_q")),
    ),
    _OWN_RULES,
    linear_attention=True,
    unread="known",
)
ORIGINAL = Layout(
    "original",
    "dc_ae",
    (
        *_marks("encoder.stages", ("op_list.0.main.conv1.conv", f"op_list.0.{_ATTENTION}.qkv.conv")),
        *_marks(
            "decoder.stages",
            ("op_list.0.main.conv.conv", "op_list.0.main.conv1.conv", f"op_list.0.{_ATTENTION}.qkv.conv"),
        ),
    ),
    _ORIGINAL_RULES,
    spellings=(_STRIDED,),
)
STRIDED = replace(ORIGINAL, rules=(_STRIDED, *_ORIGINAL_RULES))
"""The original's names where the encoder leaves pixels out."""

"""Stable Video Diffusion's autoencoder as a family: of KL, with a decoder that mixes the frames of a group.

Source of the names: Stability-AI generative-models (MIT; ours, ComfyUI's) and diffusers (Apache-2.0), read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..family import Shapes, refuse
from ..hints import Hints, word
from ..latent_formats import Users
from ..layout import Layout, Rule
from ..ldm.config import KLConfig
from ..ldm.family import KL, VIDEO_DIFFUSERS_MARK, VIDEO_MARKS
from ..ldm.memory import coder_elements
from ..ldm.names import ATTENTION, DIFFUSERS, DIFFUSERS_BLOCKS, LDM, diffusers_rules
from .model import TIME_MODES, VideoConfig, VideoDecoder

_OUR_BLOCKS = ("decoder.up.{i}.block.{j}", "decoder.mid.block_{j}")
_OUR_ATTENTIONS = ("decoder.up.{i}.attn.{j}", "decoder.mid.attn_1")

VIDEO_RULES: tuple[Rule, ...] = tuple(
    (template, template)
    for template in (
        *(f"{block}.{name}" for block in _OUR_BLOCKS for name in ("mix_factor", "time_stack.{rest}")),
        *(
            f"{attention}.{name}"
            for attention in _OUR_ATTENTIONS
            for name in ("mix_factor", "time_mix_block.{rest}", "video_time_embed.{rest}")
        ),
        "decoder.conv_out.time_mix_conv.{p}",
    )
)
"""What our layout has beside the image model's names."""


def _blocks_of(half: str) -> list[Rule]:
    """Where diffusers keeps the residual blocks of one half, as in the image model."""
    rules = [rule for rule in DIFFUSERS_BLOCKS if rule[0].startswith((half, "{c}"))]
    return [(theirs.replace("{c}", half), ours.replace("{c}", half)) for theirs, ours in rules]


_TIME_STACK = (
    ("temporal_res_block.norm1.{p}", "time_stack.in_layers.0.{p}"),
    ("temporal_res_block.conv1.{p}", "time_stack.in_layers.2.{p}"),
    ("temporal_res_block.norm2.{p}", "time_stack.out_layers.0.{p}"),
    ("temporal_res_block.conv2.{p}", "time_stack.out_layers.3.{p}"),
    ("time_mixer.mix_factor", "mix_factor"),
)
_FRAME_BLOCKS = [(f"{theirs}.spatial_res_block", ours) for theirs, ours in _blocks_of("decoder")]
VIDEO_DIFFUSERS_RULES: tuple[Rule, ...] = (
    *((f"{theirs}.{name}", f"{ours}.{own}") for theirs, ours in _blocks_of("decoder") for name, own in _TIME_STACK),
    ("decoder.time_conv_out.{p}", "decoder.conv_out.time_mix_conv.{p}"),
    *diffusers_rules(ATTENTION, (*_blocks_of("encoder"), *_FRAME_BLOCKS)),
)
"""diffusers' layout: in its decoder, blocks of single frames stand beside what mixes these."""


class Video(KL):
    """As KL, with layers over time in the decoder."""

    name = "video"
    title = "KL autoencoder with temporal decoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        replace(LDM, family="video", marks=VIDEO_MARKS, rules=(*VIDEO_RULES, *LDM.rules)),
        replace(DIFFUSERS, family="video", marks=(VIDEO_DIFFUSERS_MARK,), rules=VIDEO_DIFFUSERS_RULES),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {**KL.fixed, "merge_strategy": ("learned", "fixed")}
    reads: ClassVar[tuple[str, ...]] = (*KL.reads, "merge_strategy")
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {}
    temporal = True

    def infer(self, shapes: Shapes, hints: Hints) -> VideoConfig:
        image = super().infer(shapes, hints)
        pieces = {"resnet": ".time_stack.", "attention": ".time_mix_block.", "conv_out": ".time_mix_conv."}
        found = {name for name, piece in pieces.items() if any(piece in key for key in shapes)}
        kernels = ("decoder.conv_out.time_mix_conv.weight", "decoder.mid.block_1.time_stack.in_layers.2.weight")
        sizes = [shapes[key][2:] for key in kernels if key in shapes] or [(3, 1, 1)]
        frames, rows, columns = sizes[0]
        return VideoConfig(
            **vars(image),
            time_mode=next((mode for mode, mixing in TIME_MODES.items() if set(mixing) == found), "conv-only"),
            video_kernel_size=(frames, rows, columns),
            merge_strategy=word(hints, "merge_strategy", "learned"),
        )

    def owns(self, model: nn.Module) -> bool:
        return isinstance(getattr(model, "decoder", None), VideoDecoder)

    def knows(self, model: Any) -> bool:
        return False  # its layers over time are read where those of KL are

    def settings(self, model: Any) -> dict[str, str]:
        strategy = model.decoder.merge_strategy
        return super().settings(model) | ({} if strategy == "learned" else {"merge_strategy": strategy})

    def beside(self, model: Any, layout: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A quant_conv that changes nothing: diffusers' temporal autoencoder always has one, sgm's never."""
        if layout != "diffusers" or "quant_conv.weight" in named or "encoder.conv_out.bias" not in named:
            return {}
        like = named["encoder.conv_out.bias"]
        weight = torch.eye(len(like), dtype=like.dtype, device=like.device)[:, :, None, None]
        return {"quant_conv.weight": weight, "quant_conv.bias": torch.zeros_like(like)}

    def not_compared(self, model: Any) -> tuple[str, ...]:
        return () if hasattr(model, "quant_conv") else ("quant_conv",)

    def diffusers_config(self, config: KLConfig, hints: Hints) -> dict[str, Any]:
        """For the one network that diffusers has of this kind."""
        found = super().diffusers_config(config, hints)
        assert isinstance(config, VideoConfig)
        assert config.encoder is not None
        told = (config.time_mode, config.video_kernel_size, config.num_groups, config.post_quant_conv)
        attends = config.decoder is not None and (config.decoder.attn_levels or config.decoder.attn_type != "vanilla")
        if told != ("conv-only", (3, 1, 1), 32, False) or attends or config.encoder.num_res_blocks != 2:
            raise refuse("the decoder of Stable Video Diffusion", f"{told} as mode, kernel, groups and post_quant_conv")
        kept = ("block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block")
        return {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "out_channels": found["out_channels"],
            **{name: found[name] for name in kept},
        }

    def untiled_elements(self, config: KLConfig, direction: str) -> float:
        assert isinstance(config, VideoConfig)
        ends = (config.in_channels, config.out_ch)
        return coder_elements(config, direction, ends, TIME_MODES[config.time_mode])

    def decode(self, model: Any, z: Tensor, timesteps: int | None = None) -> Tensor:
        return model.decode(z) if timesteps is None else model.decode(z, timesteps=timesteps)

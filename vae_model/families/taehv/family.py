"""TAEHV and its kin as a family: tiny autoencoders of clips, on latents as the diffusion model has them.

The library gives and takes raw latents where it is known whose they are: by `latent_format`, by what the file says, or
by its name, such as taew2_1.safetensors. Else the latents are the network's own, and not marked as raw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...exact.layer import UnsupportedModule
from ..coder import Coder
from ..family import Family, Shapes, latent_shape
from ..hints import UNKNOWN, Hints, word
from ..latent_formats import Users, with_wanted
from ..layout import Layout, Rule
from ..tiny.program import limit
from .config import (
    ACTIVATIONS,
    BLOCKS,
    FORMATS,
    LIGHT,
    NAMES,
    STAGES,
    TWO_KINDS,
    TAEHVConfig,
    formats_of,
    taehv_elements,
)
from .model import TAEHV
from .program import decoder_program, encoder_program

_RULES: tuple[Rule, ...] = (("{c}.{k}.{rest}", "{c}.{k}.{rest}"),)
_STEP = BLOCKS + 3
"""Layers of a stage of the decoder: its blocks, the upsample, the growth, a convolution."""
_NAME = re.compile(rf"(?<![a-z0-9])({'|'.join(NAMES)})")


class TinyVideo(Family):
    """Causal in time: a block sees its frame and the one before it. Every stage may change the number of frames."""

    name = "taehv"
    title = "TAEHV tiny video autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("taehv", "taehv", ("decoder.22.bias", "encoder.12.conv.weight"), _RULES, unread="known"),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {"act_fn": ACTIVATIONS}
    reads: ClassVar[tuple[str, ...]] = ("latent_format",)
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {}
    has_frames = True
    takes_any_frames = True
    classes = frozenset({"TAEHV"})
    children = frozenset({"encoder", "decoder"})
    model_class = TAEHV

    def core_keys(self, layout: str) -> tuple[str, ...]:
        return tuple(f"decoder.{place}.weight" for place in ("1", "3.conv.0", "7.conv", "8", "22"))

    def infer(self, shapes: Shapes, hints: Hints) -> TAEHVConfig:
        decoder, encoder = "decoder.1.weight" in shapes, "encoder.0.weight" in shapes
        over: dict[str, Any] = {}
        widths: list[int] = []
        if decoder:
            steps = [3 + BLOCKS + 1 + _STEP * stage for stage in range(STAGES)]
            widths = [*(shapes[f"decoder.{step}.conv.weight"][1] for step in steps), shapes["decoder.22.weight"][1]]
            grown = [shapes[f"decoder.{step}.conv.weight"][0] for step in steps]
            over["decoder_over_time"] = _twice(grown, widths)
        if encoder:
            width = shapes["encoder.0.weight"][0]
            pooled = [shapes[f"encoder.{2 + (BLOCKS + 2) * stage}.conv.weight"][1] for stage in range(STAGES)]
            over["encoder_over_time"] = _twice(pooled, [width] * STAGES)
        only = over.get("decoder_over_time") or over["encoder_over_time"]
        over = {"encoder_over_time": only[::-1], "decoder_over_time": only[::-1]} | over
        colours = shapes["decoder.22.weight"][0] if decoder else shapes["encoder.0.weight"][1]
        channels = shapes["decoder.1.weight"][1] if decoder else shapes["encoder.17.weight"][0]
        if channels == 24:
            raise ValueError("found MiniMax H3's, which runs by groups of 17 frames: let ComfyUI decode with it")
        patch = int((colours / 3) ** 0.5)
        if colours != 3 * patch**2:
            raise ValueError(f"expected three colours of squares of pixels, got {colours} channels")
        told = word(hints, "latent_format", UNKNOWN)
        return TAEHVConfig(
            latent_channels=channels,
            encoder_width=shapes["encoder.0.weight"][0] if encoder else None,
            decoder_widths=tuple(widths) if decoder else None,
            patch=patch,
            act_fn=word(hints, "act_fn", ACTIVATIONS[0]),
            latent_format=told if told in formats_of(channels) else None,
            **over,
        )

    def settings(self, model: TAEHV) -> dict[str, str]:
        return {"act_fn": model.config.act_fn, "latent_format": model.config.latent_format or UNKNOWN}

    # -- latents ----------------------------------------------------------------------------------------------------

    def formats(self, config: Any) -> list[str]:
        return formats_of(config.latent_channels)

    def settle(
        self, config: TAEHVConfig, hints: Hints, files: Sequence[str], wanted: str | None = None
    ) -> tuple[TAEHVConfig, dict[str, str]]:
        known = self.formats(config)
        found = with_wanted(hints, wanted, known, config.latent_channels)
        told = found.get("latent_format")
        if told is None:
            names = {_format_of(file) for file in files}
            told = names.pop() if len(names) == 1 else None
        name = told if told in known else None
        if name is not None:
            found["latent_format"] = name
        named = {found_in[1].startswith(LIGHT) for found_in in map(_named, files) if found_in}
        if config.latent_channels == TWO_KINDS and "act_fn" not in found and len(named) == 1:
            found["act_fn"] = ACTIVATIONS[named.pop()]
            config = replace(config, act_fn=found["act_fn"])
        return replace(config, latent_format=name), found

    def users_of(self, config: TAEHVConfig) -> tuple[Users, ...]:
        if config.latent_format is not None:
            return (FORMATS[config.latent_format],)
        return tuple(FORMATS[name] for name in formats_of(config.latent_channels)[:-1])

    def knows_raw(self, config: TAEHVConfig, hints: Hints) -> bool:
        return config.latent_format is not None

    def not_raw(self, config: TAEHVConfig) -> str:
        return (
            "latents: expected a tiny VAE whose latents are known, got one that neither its file nor its name tells: "
            "its latents are its own, not raw; say latent_format (--latent-format): "
            f"{', '.join(formats_of(config.latent_channels))}"
        )

    def convention(self, config: TAEHVConfig) -> str:
        shape = latent_shape(config, f" (frames - 1) / {config.time_factor} + 1,")
        if config.latent_format is None:
            return f"{shape}, as the network has them, not raw"
        return f"{shape}, raw; the network works on those of {FORMATS[config.latent_format].models}"

    def untold(self, config: TAEHVConfig, hints: Hints) -> list[str]:
        return [] if self.knows_raw(config, hints) else [f"whose latents they are: {self.listed_users(config)}"]

    def assumed(self, config: TAEHVConfig, hints: Hints) -> dict[str, object]:
        two_kinds = config.latent_channels == TWO_KINDS and "act_fn" not in hints
        return {"act_fn": config.act_fn} if two_kinds else {}

    # -- running ----------------------------------------------------------------------------------------------------

    def untiled_elements(self, config: TAEHVConfig, direction: str) -> float:
        return taehv_elements(config, direction)

    def time_factor(self, config: Any) -> int:
        return config.time_factor

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        if isinstance(model, TAEHV):
            program = decoder_program(model.decoder, model.config.patch)
            return Coder(program, lambda rows: limit(model.own(rows)), lambda rows: rows * 2 - 1)
        program = decoder_program(model.decoder, _patch_of(model))
        return Coder(program, lambda rows: limit(model.process_in(rows)))

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        if isinstance(model, TAEHV):
            program = encoder_program(model.encoder, model.config.patch)
            return Coder(program, lambda rows: (rows + 1).div_(2), model.raw)
        return Coder(encoder_program(model.encoder, _patch_of(model)), finish=model.process_out)


def _patch_of(model: Any) -> int:
    """Of the host's model, whose pixels are 0..1 and whose latents its own functions convert."""
    if getattr(model, "is_h3", False):
        raise UnsupportedModule("TAEHV: expected another model than MiniMax H3, which runs by groups of 17 frames")
    return int(getattr(model, "patch_size", 1))


def _twice(found: list[int], widths: Sequence[int]) -> tuple[bool, ...]:
    """Whether each is twice its width; ValueError where one is neither that nor as wide."""
    pairs = list(zip(found, widths, strict=False))
    if any(channels not in (width, 2 * width) for channels, width in pairs):
        raise ValueError(f"expected one or two frames, of channels {list(widths)}, got {found}")
    return tuple(channels == 2 * width for channels, width in pairs)


def _named(file: str) -> re.Match[str] | None:
    return _NAME.search(Path(file).name.lower())


def _format_of(file: str) -> str | None:
    found = _named(file)
    return NAMES[found[1]] if found else None

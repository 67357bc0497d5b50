"""What a VAE file is, in words and numbers, from its header alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..bundled import files_named
from ..errors.bytesize import format_bytes
from ..exact.layer import UnsupportedModule
from ..exact.plan.search import make_plan
from ..families.family import Config
from ..families.hints import HALVES
from ..families.layout import is_counter
from ..families.table import FAMILIES, decoder_of, encoder_of
from ..host import ENDLESS
from .load import build_empty, inspect_model, notes_of

NOTHING_UNTOLD = "nothing that is needed"
LAW_PIXELS = 4096
"""Side of the image at which memory laws are read off: strips hardly count there."""
_UNTILED = "untiled {}, 1024 x 1024, 16-bit"
_EXACT = f"exact {{}}, elements per pixel (16-bit at {LAW_PIXELS} x {LAW_PIXELS})"


def _laws(model: Any, config: Config, direction: str) -> str:
    """Elements per pixel of the schedules, from plans of a large image."""
    try:
        coder = decoder_of(model) if direction == "decode" else encoder_of(model, config.latent_channels)
    except UnsupportedModule as reason:
        return f"the engine has no rule: {reason}"
    side = LAW_PIXELS // (config.decode_factor if direction == "decode" else 1)
    shape = (1, coder.program.in_channels, side, side)
    laws: list[str] = []
    for kind in ("resident", "recompute"):
        plan = make_plan(coder.program, shape, torch.float16, ENDLESS, device_type="cuda", prefer=kind)
        elements = plan.peak_bytes / 2 / LAW_PIXELS**2
        laws.append(f"{kind} {elements:.0f} ({format_bytes(plan.peak_bytes)}, work {plan.work_ratio:.2f} x untiled)")
    return ", ".join(laws)


def describe_vae(
    paths: Sequence[str], latent_format: str | None = None, variant: str | None = None, part: str | None = None
) -> dict[str, object]:
    """Facts of one VAE (one file or its two halves), in reading order; VAEFileError where it is none."""
    sources = files_named(paths)
    parts, family, config, hints = inspect_model(sources, latent_format=latent_format, variant=variant, part=part)
    row, model = FAMILIES[family], build_empty(parts, family, config)
    dtypes = {part.weights.dtypes[key] for part in parts for name, key in part.keys.items() if not is_counter(name)}
    halves = [half for half in HALVES if any(half in part.halves for part in parts)]
    # Of the levels in the order they run: the encoder's from full resolution on, the decoder's towards it.
    widths = {half: ", ".join(map(str, widths)) for half, widths in config.widths_of_halves.items()}
    facts: dict[str, object] = {
        "file": " + ".join(part.weights.name for part in parts),
        "family": row.title,
        "layout": " + ".join(part.layout.name for part in parts),
        "prefix": parts[0].prefix or "none",
        **({"notes": "; ".join(notes_of(parts))} if notes_of(parts) else {}),
        "halves": " and ".join(halves),
        "widths": "; ".join(f"{half} {listed}" for half, listed in widths.items()),
        "latent channels": config.latent_channels,
        "pixels per latent cell": config.factor,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored as": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
    }
    for half, direction in (("decoder", "decode"), ("encoder", "encode")):
        if half in halves:
            peak = row.untiled_elements(config, direction) * 1024**2 * 2
            facts[_UNTILED.format(direction)] = f"{format_bytes(peak)} of activations"
            facts[_EXACT.format(direction)] = _laws(model, config, direction)
    facts["latents"] = row.convention(config)
    facts["scale and shift"] = row.scale_and_shift(config, hints)
    facts["not told by the weights"] = "; ".join(row.untold(config, hints)) or NOTHING_UNTOLD
    facts["configuration"] = asdict(config)
    return facts


def card(facts: Mapping[str, object]) -> dict[str, object]:
    """What most people ask for, in few short rows: what it is, its latents, what decoding (else encoding) takes."""
    rows = {
        "file": facts["file"],
        "family": f"{facts['family']}, {facts['layout']} layout",
        "weights": f"{facts['parameters']:,} parameters, {facts['stored as']}, {facts['halves']}",
        "latents": facts["latents"],
        "scale and shift": facts["scale and shift"],
    }
    if "notes" in facts:
        rows["notes"] = facts["notes"]
    if facts["prefix"] != "none":
        rows["prefix"] = facts["prefix"]
    if facts["not told by the weights"] != NOTHING_UNTOLD:
        rows["not told"] = facts["not told by the weights"]
    direction = "decode" if "decoder" in str(facts["halves"]) else "encode"
    side = f"{LAW_PIXELS} x {LAW_PIXELS}"
    rows[f"untiled {direction}"] = f"{facts[_UNTILED.format(direction)]}, 1024 x 1024 in 16 bits"
    rows[f"exact {direction}"] = f"elements per pixel, {side} in 16 bits: {facts[_EXACT.format(direction)]}"
    return rows

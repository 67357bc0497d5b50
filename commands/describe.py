"""What a VAE file is, and what running it would take, in words and numbers, from its header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..model_management.budget import AMPLE, budgets
from ..model_management.devices import parse_device, parse_dtype, vae_device, vae_dtype
from ..model_management.loader import BUNDLED
from ..vae_model.bundled import BUNDLED_FILE
from ..vae_model.checkpoint.load import build_empty, inspect_model, notes_of
from ..vae_model.errors import InputError
from ..vae_model.errors.bytesize import format_bytes, parse_bytes
from ..vae_model.exact.layer import UnsupportedModule
from ..vae_model.exact.plan.plan import Plan
from ..vae_model.exact.plan.search import make_plan
from ..vae_model.families.coder import Coder
from ..vae_model.families.config import Config
from ..vae_model.families.layout import COUNTERS
from ..vae_model.families.table import FAMILIES, decoder_of, encoder_of
from ..vae_model.notes import tell

NOTHING_UNTOLD = "nothing that is needed"
LAW_PIXELS = 4096
"""Side of the image at which memory laws are read off: strips hardly count there."""


def _open(
    paths: Sequence[str], latent_format: str | None = None, variant: str | None = None, part: str | None = None
) -> tuple[Any, Any, Config, Any, dict[str, str]]:
    """(parts, family, configuration, the model without weights, hints)."""
    sources = [str(BUNDLED_FILE) if path == BUNDLED else path for path in paths]
    parts, family, config, hints = inspect_model(sources, latent_format=latent_format, variant=variant, part=part)
    return parts, family, config, build_empty(parts, family, config), hints


def _half(model: Any, config: Config, direction: str) -> Coder:
    return decoder_of(model) if direction == "decode" else encoder_of(model, config.latent_channels)


def _input_shape(half: Coder, config: Config, direction: str, width: int, height: int) -> tuple[int, int, int, int]:
    f = config.decode_factor if direction == "decode" else 1
    return 1, half.program.in_channels, height // f, width // f


def plan_file(
    paths: Sequence[str],
    size: str,
    direction: str,
    *,
    memory: str | None,
    host_memory: str,
    dtype: str = "auto",
    device: str = "auto",
    variant: str | None = None,
    part: str | None = None,
) -> Plan:
    """The plan for an image of `size`, "WIDTHxHEIGHT" pixels; InputError or MemoryBudgetError in one line."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", size.strip())
    if match is None:
        raise InputError(f"--size: expected WIDTHxHEIGHT in pixels, got {size!r}: write it like 4096x4096")
    width, height = int(match[1]), int(match[2])
    parts, _, config, model, _ = _open(paths, None, variant, part)
    tell(" + ".join(paths), notes_of(parts))
    f = config.decode_factor if direction == "decode" else config.factor
    if min(width, height) < f:
        raise InputError(f"--size: expected at least {f} x {f}, got {size}: enlarge the image")
    target = vae_device() if device == "auto" else parse_device(device)
    kind = vae_dtype(target) if dtype == "auto" else parse_dtype(dtype)
    half = _half(model, config, direction)
    device_budget, _ = budgets(target, None if memory is None else parse_bytes(memory))
    host_budget = parse_bytes(host_memory, "--host-memory") if host_memory != "0" else 0
    shape = _input_shape(half, config, direction, *(side // f * f for side in (width, height)))
    return make_plan(half.program, shape, kind, device_budget, host_budget, device_type=target.type)


def _laws(model: Any, config: Config, direction: str) -> str:
    """Elements per pixel of the schedules, from plans of a large image."""
    try:
        half = _half(model, config, direction)
    except UnsupportedModule as reason:
        return f"the engine has no rule: {reason}"
    shape = _input_shape(half, config, direction, LAW_PIXELS, LAW_PIXELS)
    laws: list[str] = []
    for kind in ("resident", "recompute"):
        plan = make_plan(half.program, shape, torch.float16, AMPLE, device_type="cuda", prefer=kind)
        elements = plan.peak_bytes / 2 / LAW_PIXELS**2
        laws.append(f"{kind} {elements:.0f} ({format_bytes(plan.peak_bytes)}, work {plan.work_ratio:.2f} x untiled)")
    return ", ".join(laws)


def _widths(config: Config) -> str:
    """Of the levels in the order they run: the encoder's from full resolution on, the decoder's towards it."""
    return "; ".join(f"{half} {', '.join(map(str, widths))}" for half, widths in config.widths_of_halves.items())


def describe_vae(
    paths: Sequence[str], latent_format: str | None = None, variant: str | None = None, part: str | None = None
) -> dict[str, object]:
    """Facts of one VAE (one file or its two halves), in reading order; VAEFileError where it is none."""
    parts, family, config, model, hints = _open(paths, latent_format, variant, part)
    row = FAMILIES[family]
    shapes = {key: shape for part in parts for key, shape in part.shapes.items()}
    dtypes = {part.weights.dtypes[key] for part in parts for name, key in part.keys.items() if name not in COUNTERS}
    halves = [half for half in ("encoder", "decoder") if any(key.startswith(f"{half}.") for key in shapes)]
    facts: dict[str, object] = {
        "file": " + ".join(part.weights.name for part in parts),
        "family": row.title,
        "layout": " + ".join(part.layout.name for part in parts),
        "prefix": parts[0].prefix or "none",
        **({"notes": "; ".join(notes_of(parts))} if notes_of(parts) else {}),
        "halves": " and ".join(halves),
        "widths": _widths(config),
        "latent channels": config.latent_channels,
        "pixels per latent cell": config.factor,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored as": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
    }
    for half, direction in (("decoder", "decode"), ("encoder", "encode")):
        if half in halves:
            peak = row.untiled_elements(config, direction) * 1024**2 * 2
            facts[f"untiled {direction}, 1024 x 1024, 16-bit"] = f"{format_bytes(peak)} of activations"
            facts[f"exact {direction}, elements per pixel (16-bit at {LAW_PIXELS} x {LAW_PIXELS})"] = _laws(
                model, config, direction
            )
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
    exact = facts[f"exact {direction}, elements per pixel (16-bit at {side})"]
    rows[f"untiled {direction}"] = f"{facts[f'untiled {direction}, 1024 x 1024, 16-bit']}, 1024 x 1024 in 16 bits"
    rows[f"exact {direction}"] = f"elements per pixel, {side} in 16 bits: {exact}"
    return rows

"""What a size would take, without running anything: of a VAE in a workflow, as text, or of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..vae_model.bundled import files_named
from ..vae_model.checkpoint.load import build_empty, inspect_model, notes_of
from ..vae_model.errors import InputError, MemoryBudgetError
from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.errors.wording import require_half
from ..vae_model.exact.layer import UnsupportedModule
from ..vae_model.exact.plan.plan import Plan
from ..vae_model.exact.program import Program
from ..vae_model.families.first_frame import image_frames, latent_frames
from ..vae_model.families.table import FAMILIES, decoder_of, encoder_of
from ..vae_model.notes import tell
from ..vae_model.runs.parts import PARTS, choose_way
from ..vae_model.runs.run import coder_of
from .devices import parse_device, parse_dtype, vae_device, vae_dtype
from .host import LocalHost
from .obstacle import coder_for, factor_of, time_factor_of


def plan_text(vae: Any, direction: str, width: int, height: int, memory: int | None, frames: int = 1) -> str:
    """The plan for an image of `width` x `height` pixels, or in one line why there is none.

    `memory`: bytes above the weights, None for what is free. `frames`: of a clip of so many such images.
    """
    from ..vae_model.vae import VAE
    from .exact_vae import ExactVAE, make_exact

    vae = make_exact(vae, memory)
    made: object = vae
    ours = isinstance(made, VAE)
    if not ours and not isinstance(made, ExactVAE):
        return f"This VAE runs by its own method: expected a VAE of ComfyUI or of ours, got {type(made).__name__}"
    try:
        require_half(getattr(vae, "first_stage_model", None), f"{direction}r", direction)
        # The kind of input that such a VAE is given, without its numbers.
        shape = (1, vae.latent_channels, 1, 1) if direction == "decode" else (1, 1, 1, vae.output_channels)
        example = torch.empty(shape, device="meta")
        program = (coder_of(vae, direction) if ours else coder_for(vae, direction, example)).program
        host = vae.host if ours else vae.exact_host
        _, *sides = _input_shape(program, direction, width, height, crops=getattr(vae, "crop_input", True))
        factor = time_factor_of(program, direction) if program.in_time else 1
        shape = (_frames_in(program, direction, factor, frames, "frames"), *sides)
        plan = host.make_plan(program, shape, vae.vae_dtype, vae.device, vae.memory_limit)
    except (InputError, MemoryBudgetError) as error:
        return str(error)
    except UnsupportedModule as reason:
        return f"This VAE runs {'untiled' if ours else 'by its own method'}: {reason}"
    clip = f", {frames} frames" if frames > 1 else ""
    head = (
        f"{direction} {width} x {height}{clip}, {str(vae.vae_dtype).removeprefix('torch.')}, {vae.device}: {plan.name}"
    )
    return f"{head}\n{plan.table()}"


def plan_file(
    paths: Sequence[str],
    size: str,
    direction: str,
    *,
    memory: str | None,
    host_memory: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    variant: str | None = None,
    part: str | None = None,
    frames: int = 1,
) -> Plan:
    """The plan for an image of `size`, "WIDTHxHEIGHT" pixels, from the header of a VAE's file or of its two halves.

    Args:    memory, host_memory: budgets with their unit, None for those that a run here would have now.
             frames: of a clip of so many such images.
             The others are those of `load_vae`.
    Raises:  InputError or MemoryBudgetError, in one line.
    """
    match = re.fullmatch(r"(\d+)[xX](\d+)", size.strip())
    if match is None:
        raise InputError(f"--size: expected WIDTHxHEIGHT in pixels, got {size!r}: write it like 4096x4096")
    width, height = int(match[1]), int(match[2])
    parts, family, config, _ = inspect_model(files_named(paths), variant=variant, part=part)
    tell(" + ".join(paths), notes_of(parts))
    model = build_empty(parts, family, config)
    coder = decoder_of(model) if direction == "decode" else encoder_of(model, config.latent_channels)
    f = factor_of(coder.program, direction)
    if min(width, height) < f:
        raise InputError(f"--size: expected at least {f} x {f}, got {size}: enlarge the image")
    target = vae_device() if device == "auto" else parse_device(device)
    kind = vae_dtype(target) if dtype == "auto" else parse_dtype(dtype, also=("auto",))
    waiting = None if host_memory is None else 0 if host_memory == "0" else parse_bytes(host_memory, "--host-memory")
    budget = None if memory is None else parse_bytes(memory)
    images = _frames_in(coder.program, direction, FAMILIES[family].time_factor(config), frames)
    _, channels, rows, columns = _input_shape(coder.program, direction, width, height)
    shape = (images, channels, rows, columns)
    host = LocalHost(host_budget=waiting)
    return _plan_of(host, coder.program, shape, kind, target, budget, leaves=direction == "decode" and frames > 1)


def _plan_of(
    host: LocalHost,
    program: Program,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    budget: int | None,
    *,
    leaves: bool,
) -> Plan:
    """Of the whole clip, with that of its frames leaving as they are finished; of the latter alone where only it fits.

    `leaves`: whether they may.
    """
    early = choose_way(host, program, shape, dtype, device, budget, PARTS[0]).total if leaves else None
    early = early if early is not None and early.past_bytes else None
    try:
        return replace(host.make_plan(program, shape, dtype, device, budget), early=early)
    except MemoryBudgetError:
        if early is None:
            raise
        return early


def _frames_in(program: Program, direction: str, factor: int, frames: int, what: str = "--frames") -> int:
    """What a run is given of a clip of so many frames; InputError for counts that no clip of this VAE has."""
    if frames < 1:
        raise InputError(f"{what}: expected at least 1, got {frames}: say how many the clip has")
    if frames > 1 and not program.in_time:
        raise InputError(f"{what}: expected 1 for a VAE of single images, got {frames}: leave it out")
    latents = latent_frames(frames, factor)
    near = image_frames(latents, factor)
    if near != frames:
        raise InputError(f"{what}: expected 1 + {factor} * n, got {frames}: say {near} or {near + factor}")
    return frames if direction == "encode" else latents


def _input_shape(
    program: Program, direction: str, width: int, height: int, *, crops: bool = True
) -> tuple[int, int, int, int]:
    """(1, C, H, W) of what a run is given for an image of so many pixels: latents, or pixels in whole cells."""
    f = factor_of(program, direction)
    if direction == "encode" and not crops:
        return 1, program.in_channels, height, width
    rows, columns = (max(1, side // f) * (f if direction == "encode" else 1) for side in (height, width))
    return 1, program.in_channels, rows, columns

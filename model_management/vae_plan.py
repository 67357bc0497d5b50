"""The plan for a VAE in a workflow, as text."""

from __future__ import annotations

from typing import Any

from ..vae_model.errors import InputError, MemoryBudgetError
from ..vae_model.errors.wording import require_half
from ..vae_model.exact.layer import UnsupportedModule
from ..vae_model.families.table import decoder_of, encoder_of
from ..vae_model.vae import VAE
from .exact_vae import ExactVAE, make_exact


def plan_text(vae: Any, direction: str, width: int, height: int, memory: int | None) -> str:
    """The plan for an image of `width` x `height` pixels, or in one line why there is none.

    `memory`: bytes above the weights, None for what is free.
    """
    vae = make_exact(vae, memory)
    made: object = vae
    ours = isinstance(made, VAE)
    if not ours and not isinstance(made, ExactVAE):
        return f"This VAE runs by its own method: expected a VAE of ComfyUI or of ours, got {type(made).__name__}"
    try:
        require_half(getattr(vae, "first_stage_model", None), f"{direction}r", direction)
        host = vae.exact_host if hasattr(vae, "exact_host") else vae.host
        if direction == "decode":
            half, factor = decoder_of(vae.first_stage_model), vae.spacial_compression_decode()
        else:
            half, factor = encoder_of(vae.first_stage_model, vae.latent_channels), 1
    except InputError as reason:
        return str(reason)
    except UnsupportedModule as reason:
        return f"This VAE runs {'untiled' if ours else 'by its own method'}: {reason}"
    shape = (1, half.program.in_channels, max(1, height // factor), max(1, width // factor))
    try:
        plan = host.make_plan(half.program, shape, vae.vae_dtype, vae.device, vae.memory_limit)
    except MemoryBudgetError as error:
        return str(error)
    head = f"{direction} {width} x {height}, {str(vae.vae_dtype).removeprefix('torch.')}, {vae.device}: {plan.name}"
    return f"{head}\n{plan.table()}"

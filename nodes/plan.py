"""The node that shows what a size will take, without running anything."""

from __future__ import annotations

from typing import Any

from ..model_management.node_edge import MEMORY_INPUT, in_one_line, inputs, integer, memory_bytes
from ..model_management.vae_plan import plan_text


class VAEPlan:
    """vae, width, height -> STRING, of pictures and of clips."""

    DESCRIPTION = (
        "Shows how an image of this size would be decoded or encoded in the memory there is: schedule, strip heights, "
        "peak memory, work. Nothing is run."
    )
    CATEGORY = "model/latent/ExactVAE"
    FUNCTION = "plan"
    RETURN_TYPES = ("STRING",)
    OUTPUT_TOOLTIPS = ("The plan as text.",)
    OUTPUT_NODE = True
    SEARCH_ALIASES = ("vae memory", "memory estimate", "vram estimate")
    INPUT_TYPES = inputs(
        {
            "vae": ("VAE", {"tooltip": "The VAE to plan for."}),
            "width": integer(2048, 16, 8, "Width of the image in pixels.", most=65536),
            "height": integer(2048, 16, 8, "Height of the image in pixels.", most=65536),
        },
        {
            "direction": (["decode", "encode"], {"default": "decode", "tooltip": "What would be done."}),
            **MEMORY_INPUT,
            "frames": integer(1, 1, 1, "Frames of a clip, of a video VAE. 1: a picture.", most=65536),
        },
    )

    @in_one_line
    def plan(
        self, vae: Any, width: int, height: int, direction: str = "decode", memory: float = 0.0, frames: int = 1
    ) -> dict[str, Any]:
        """The plan, or in one line why there is none."""
        text = plan_text(vae, direction, width, height, memory_bytes(memory), frames)
        return {"ui": {"text": [text]}, "result": (text,)}

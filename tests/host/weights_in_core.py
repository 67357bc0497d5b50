"""What runs take with weights as the core hands them out: stored ones, patched ones, ones of another dtype.

See `in_core.py`.
"""

# ruff: noqa: I001
import json

from in_core import fill, small_kl  # first of all: it makes this process the host

import torch
from vaes_of_core import WAN, from_markers


def run(vae, latents):
    """(bytes of live tensors above the images, planned bytes)."""
    from exact_vae.benchmarks.meter import LiveTensorMeter

    with torch.inference_mode(), LiveTensorMeter() as meter:
        images = vae.decode(latents)
    return meter.peak_bytes - images.nbytes, vae.last_report.plan.peak_bytes


def main():
    """Clips and pictures."""
    from exact_vae.model_management.exact_vae import make_exact

    clips, told = from_markers(WAN), {}
    fill(clips.first_stage_model)
    generator = torch.Generator().manual_seed(1)
    cases = (("clip", clips, (1, 16, 2, 4, 5)), ("picture", small_kl(), (1, 4, 8, 10)))
    for name, vae, shape in cases:
        made, latents = make_exact(vae), torch.randn(shape, generator=generator)
        for how in ("stored", "patched", "other dtype"):
            functions = [torch.clone] if how == "patched" else []
            for layer in vae.first_stage_model.modules():
                if hasattr(layer, "weight_function"):
                    layer.weight_function = layer.bias_function = functions
            if how == "other dtype":
                vae.first_stage_model.bfloat16()
                made.vae_dtype = torch.float32
            told[f"{name}, {how}"] = run(made, latents)
    print(json.dumps(told))


main()

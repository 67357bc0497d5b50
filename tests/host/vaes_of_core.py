"""Every image VAE that the core's loader builds, with random weights; and what becomes of it behind Make VAE Exact.

See `in_core.py`. The core decides by a few marking tensors and complains of missing ones at most, so a file of
markers is enough.
"""

# ruff: noqa: I001
import json

from in_core import FOLDER, exact_vae, fill  # first of all: it makes this process the host

import comfy.sd
import comfy.taesd.taesd
import folder_paths
import nodes
import torch
from safetensors.torch import save_file

LAST_STEP = {"decoder.up.3.upsample.conv.weight": (512, 512, 3, 3)}
WAN = {
    "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
    "decoder.head.0.gamma": (96, 1, 1, 1),
    "decoder.head.2.weight": (3, 96, 3, 3, 3),
    "encoder.conv1.weight": (96, 3, 3, 3, 3),
}
MARKERS = {
    "SD": {"decoder.conv_in.weight": (512, 4, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1), **LAST_STEP},
    "SD3, Flux.1": {"decoder.conv_in.weight": (512, 16, 3, 3), **LAST_STEP},
    "SD, diffusers": {
        "decoder.up_blocks.0.resnets.0.norm1.weight": (512,),
        "decoder.up_blocks.0.upsamplers.0.conv.weight": (512, 512, 3, 3),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "post_quant_conv.weight": (4, 4, 1, 1),
    },
    "x4-upscaler": {"decoder.conv_in.weight": (512, 4, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1)},
    "Flux.2": {
        "decoder.conv_in.weight": (512, 32, 3, 3),
        "post_quant_conv.weight": (32, 32, 1, 1),
        "bn.running_mean": (128,),
        **LAST_STEP,
    },
    "Flux.2 small decoder": {
        "decoder.conv_in.weight": (384, 32, 3, 3),
        "post_quant_conv.weight": (32, 32, 1, 1),
        "bn.running_mean": (128,),
        "decoder.up.3.upsample.conv.weight": (384, 384, 3, 3),
    },
    "Wan 2.1, Qwen-Image": WAN,
    "Qwen-Image-Layered": WAN | {"decoder.head.2.weight": (4, 96, 3, 3, 3), "encoder.conv1.weight": (96, 4, 3, 3, 3)},
    "Wan 2.1, twice as large": WAN | {"decoder.head.2.weight": (12, 96, 3, 3, 3)},
    "SVD": {"decoder.mid.block_1.mix_factor": (1,)},
    "Stable Cascade, stage A": {"vquantizer.codebook.weight": (8192, 4)},
    "Stable Cascade, stage C": {"encoder.backbone.1.0.block.0.1.num_batches_tracked": ()},
    "Hunyuan-Image": {"decoder.conv_in.weight": (1024, 64, 3, 3)},
    "Wan 2.2": {
        "decoder.middle.0.residual.0.gamma": (1024, 1, 1, 1),
        "decoder.upsamples.0.upsamples.0.residual.2.weight": (1024, 1024, 3, 3, 3),
    },
    "TAEW2.1": {"decoder.22.bias": (3,), "decoder.1.weight": (256, 16, 3, 3)},
    "TAEW2.2": {"decoder.22.bias": (12,), "decoder.1.weight": (256, 48, 3, 3)},
    "TAELTX": {"decoder.22.bias": (48,), "decoder.1.weight": (256, 128, 3, 3)},
    "TAEHV 1.5": {"decoder.22.bias": (12,), "decoder.1.weight": (256, 32, 3, 3)},
    "TAEHV of MiniMax H3": {"decoder.22.bias": (12,), "decoder.1.weight": (256, 24, 3, 3)},
    "pixel_space": {"pixel_space_vae": ()},
}
BY_FILES = {"taesd": 4, "taesdxl": 4, "taesd3": 16, "taef1": 16, "taef2": 128}
"""Latent channels of the pairs in models/vae_approx."""


def tiny_files():
    """A pair of files for every tiny VAE, random."""
    folder = FOLDER / "vae_approx"
    folder.mkdir(parents=True, exist_ok=True)
    for name, channels in BY_FILES.items():
        model = comfy.taesd.taesd.TAESD(latent_channels=channels)
        fill(model)
        for half in ("encoder", "decoder"):
            save_file(getattr(model, f"taesd_{half}").state_dict(), folder / f"{name}_{half}.safetensors")
    folder_paths.add_model_folder_path("vae_approx", str(folder))


def from_markers(markers):
    """The core's VAE for a file that has these tensors; None where this version knows no such file."""
    vae = comfy.sd.VAE(sd={name: torch.zeros(shape) for name, shape in markers.items()})
    return vae if getattr(vae, "first_stage_model", None) is not None else None


def all_vaes():
    """(name, VAE); None where this version builds none."""
    tiny_files()
    offered = nodes.VAELoader.INPUT_TYPES()["required"]["vae_name"][0]
    for name in BY_FILES:
        yield name, nodes.VAELoader().load_vae(name)[0] if name in offered else None
    for name, markers in MARKERS.items():
        try:
            vae = from_markers(markers)
        except (RuntimeError, KeyError, AttributeError):  # an older core builds another network for these
            vae = None
        yield name, vae


def compared(found, expected):
    """How far from the core's own result, as a share of its range."""
    if found.shape != expected.shape:
        return f"{tuple(found.shape)} for {tuple(expected.shape)}"
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def tried(vae):
    """Both directions behind the node: how each ran, why, and how far off. What cannot be exact is not run."""
    (made,) = exact_vae.NODE_CLASS_MAPPINGS["ExactVAEApply"]().apply(vae)
    from exact_vae.model_management.obstacle import coder_for
    from exact_vae.vae_model.exact.layer import UnsupportedModule

    frame = (1,) if vae.latent_dim == 3 else ()
    z = torch.randn(1, vae.latent_channels, *frame, 4, 6, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    told, filled = {}, False
    inputs = {"decode": z, "encode": pixels}
    if vae.latent_dim == 3:
        for frames in (2, 5):
            generator = torch.Generator().manual_seed(frames)
            inputs[f"decode {frames}"] = torch.randn(1, vae.latent_channels, frames, 4, 6, generator=generator)
            inputs[f"encode {frames}"] = torch.rand(4 * frames - 3, 32, 64, 3, generator=generator)
    for name, x in inputs.items():
        what, reason = name.split()[0], None
        try:
            coder_for(made, what, x[:, :, 0] if x.ndim == 5 else x)
        except UnsupportedModule as found:
            reason = str(found)
        told[name] = {"method": "host", "reason": reason, "off": None}
        if reason is None:
            if not filled:
                fill(vae.first_stage_model)
            filled = True
            found, expected = getattr(made, what)(x), getattr(vae, what)(x)
            report = made.last_report
            told[name] = {"method": report.method, "reason": report.reason, "off": compared(found, expected)}
    return told


def main():
    """All of them."""
    told = {}
    with torch.inference_mode():
        for name, vae in all_vaes():
            told[name] = None if vae is None else tried(vae)
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()

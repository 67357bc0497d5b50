"""The same file by the core's loader node and by ours: the same latents and images. See `in_core.py`."""

# ruff: noqa: I001
import json

from in_core import FOLDER, exact_vae, fill  # first of all: it makes this process the host

import folder_paths
import nodes
import torch
from safetensors.torch import save_file
from vaes_of_core import BY_FILES, MARKERS, compared, from_markers, tiny_files

FLUX2 = ("Flux.2", "Flux.2 small decoder")


def flux2_files():
    """Flux.2's own VAEs in models/vae, random, as the core's model names the tensors."""
    folder = FOLDER / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FLUX2:
        try:
            model = from_markers(MARKERS[name]).first_stage_model
        except (RuntimeError, KeyError, AttributeError):  # an older core builds another network, or none
            continue
        fill(model)
        tensors = {key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    folder_paths.add_model_folder_path("vae", str(folder))


def empty_latent(vae, width=96, height=64):
    """The node of Flux.2's workflows where the VAE is Flux.2's; else zeros of as many channels."""
    node = nodes.NODE_CLASS_MAPPINGS.get("EmptyFlux2LatentImage") if vae.latent_channels == 128 else None
    if node is None:
        return torch.zeros(1, vae.latent_channels, height // 8, width // 8)
    return node.execute(width, height)[0]["samples"]


def tried(name):
    """How far ours is from the core's, by latents of the core's own shape; None where this core has no such VAE."""
    if name not in nodes.VAELoader.INPUT_TYPES()["required"]["vae_name"][0]:
        return None
    core = nodes.VAELoader().load_vae(name)[0]
    ours = exact_vae.NODE_CLASS_MAPPINGS["ExactVAELoader"]().load_vae(name, "float32")[0]
    z = empty_latent(core)
    told = {"channels": [core.latent_channels, ours.latent_channels], "shape": list(z.shape)}
    z = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    for what, x in (("decode", z), ("encode", pixels)):
        told[what] = compared(getattr(ours, what)(x), getattr(core, what)(x))
        told[f"{what}, exact"] = ours.last_report.method == "exact"
    return told


def main():
    """All of them."""
    import asyncio

    asyncio.run(nodes.init_builtin_extra_nodes())
    with torch.inference_mode():
        tiny_files()
        flux2_files()
        told = {name: tried(name) for name in BY_FILES} | {name: tried(f"{name}.safetensors") for name in FLUX2}
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()

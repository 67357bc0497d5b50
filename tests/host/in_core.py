"""Makes a process of the host's interpreter the host, without a server: first import of the scripts of this folder.

Their arguments: this repository, and a folder for files. They run in the host's checkout, and print JSON at the end.
"""

import importlib.util
import logging
import math
import sys
from pathlib import Path

ROOT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import torch  # noqa: E402

logging.disable(logging.WARNING)
spec = importlib.util.spec_from_file_location("exact_vae", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
exact_vae = importlib.util.module_from_spec(spec)
sys.modules["exact_vae"] = exact_vae
spec.loader.exec_module(exact_vae)


def fill(model, seed=0):
    """Weights that keep activations near 1, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.startswith("vae_") or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name:
            noise = noise.abs() + 0.5
        elif tensor.ndim > 1 and tensor.shape[0] != tensor.numel():
            noise /= math.sqrt(tensor[0].numel())
        else:
            noise = noise * 0.1 + (1.0 if name.endswith(("norm.weight", "gamma")) or ".norm" in name else 0.0)
        tensor.data.copy_(noise)


def small_kl():
    """The core's VAE of SD with random weights."""
    shapes = {"decoder.conv_in.weight": (512, 4, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1)}
    shapes["decoder.up.3.upsample.conv.weight"] = (512, 512, 3, 3)
    vae = comfy.sd.VAE(sd={name: torch.zeros(shape) for name, shape in shapes.items()})
    fill(vae.first_stage_model)
    return vae

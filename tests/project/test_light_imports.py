"""What an import brings along: the package itself nothing heavy, a file of layers torch and no engine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib, importlib.util, json, sys
root, *names = sys.argv[1:]
spec = importlib.util.spec_from_file_location("exact_vae", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["exact_vae"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["exact_vae"])
for name in names:
    importlib.import_module("exact_vae." + name)
print(json.dumps(sorted(sys.modules)))
"""
ENGINE = ("exact_vae.vae_model.exact", "exact_vae.vae_model.kernels", "exact_vae.vae_model.runs")
COMPILERS = ("torch.utils.cpp_extension", "torch._inductor", "triton", "setuptools", "distutils", "cffi")
HEAVY = ("PIL", "safetensors", "diffusers", "lightning", "matplotlib", "skimage")
TORCH = ("torch", "numpy", "tqdm")  # PyTorch brings both others along


def loaded(*names: str) -> list[str]:
    """What a fresh process has loaded after importing exact_vae and these of its modules."""
    command = [sys.executable, "-I", "-c", PROBE, str(ROOT), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def among(modules: list[str], tops: tuple[str, ...]) -> list[str]:
    return [name for name in modules for top in tops if f"{name}.".startswith(f"{top}.")]


def test_the_package_alone_loads_nothing_of_its_own_and_nothing_heavy() -> None:
    modules = loaded()
    assert among(modules, ("exact_vae",)) == ["exact_vae"]
    assert among(modules, (*TORCH, *HEAVY, *COMPILERS)) == []


def test_layers_load_torch_and_neither_engine_nor_kernel_nor_compiler() -> None:
    modules = loaded("vae_model.families.ldm.layers", "vae_model.families.ldm.coder")
    assert "torch" in modules
    assert among(modules, (*ENGINE, *COMPILERS, *HEAVY)) == []

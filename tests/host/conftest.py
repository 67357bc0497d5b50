"""A real ComfyUI for the tests of this folder: `COMFYUI_DIR` names its checkout, `COMFYUI_PYTHON` its interpreter."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from exact_vae.tests.host.client import Client, Outcome, Prompt
from exact_vae.tests.host.server import Server

VAE_NAME = "random_kl.safetensors"
EXAMPLE_NAME = "ae.safetensors"
"""What the examples call a VAE of the user's; here the same file."""


@pytest.fixture(scope="session")
def comfy_dir() -> Path:
    """The checkout; without one every test here is skipped."""
    named = os.environ.get("COMFYUI_DIR")
    if not named:
        pytest.skip("COMFYUI_DIR names no ComfyUI checkout (COMFYUI_PYTHON: the interpreter that runs it)")
    path = Path(named).resolve()
    if not (path / "main.py").is_file():
        pytest.fail(f"COMFYUI_DIR: expected a folder with main.py, got {path}")
    return path


@pytest.fixture(scope="session")
def comfy_python() -> str:
    """The interpreter that has the host's requirements."""
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def server(comfy_dir: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ComfyUI with this pack, and a random KL VAE of full width: the host builds no other width from a file."""
    base = tmp_path_factory.mktemp("comfyui")
    write_random_kl(base / "models" / "vae" / VAE_NAME)
    shutil.copy(base / "models" / "vae" / VAE_NAME, base / "models" / "vae" / EXAMPLE_NAME)
    running = Server(comfy_dir, comfy_python, base)
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A new client for each test."""
    with Client(server.port) as one:
        yield one


@pytest.fixture
def saved(server: Server) -> Callable[[str], numpy.ndarray]:
    """saved(name): the tensor that a dump node wrote."""
    return lambda name: numpy.load(server.base / "output" / f"{name}.npy")


@pytest.fixture
def assert_same(client: Client, saved: Callable[[str], numpy.ndarray]) -> Callable[..., Outcome]:
    """assert_same(prompt, latents or images by name): run it; all are equal within float32's bound."""

    def check(prompt: Prompt, **links: list[object]) -> Outcome:
        for name, link in links.items():
            add_dump(prompt, name, link)
        outcome = client.run(prompt)
        first, *others = links
        expected = saved(first)
        span = max(1.0, float(expected.max() - expected.min()))
        assert expected.std() > 0.01, "nothing is in the result"
        for name in others:
            numpy.testing.assert_allclose(saved(name), expected, rtol=0, atol=2e-5 * span, err_msg=f"{name} != {first}")
        return outcome

    return check


def add_dump(prompt: Prompt, name: str, link: list[object]) -> None:
    """A node that writes what `link` carries, by the kind of the node it comes from."""
    kind = prompt.nodes[str(link[0])]["class_type"]
    if "Encode" in kind:
        prompt.add("ExactVAETestDumpLatent", samples=link, name=name)
    else:
        prompt.add("ExactVAETestDumpImage", images=link, name=name)


def write_random_kl(path: Path) -> None:
    """SD's VAE with random weights, in ldm layout and 16 bits; its images fill 0..1 without being cut off there."""
    import torch
    from exact_vae.vae_model.checkpoint.save import save
    from exact_vae.vae_model.families.ldm.autoencoder import build_kl
    from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig

    levels = LevelsConfig(ch=128, widths=(128, 256, 512, 512), num_res_blocks=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_kl(KLConfig(4, 4, levels, levels)).eval().requires_grad_(False)
    model.decoder.conv_out.weight.mul_(0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model.half(), path)

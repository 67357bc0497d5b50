"""Registers the repository root as the package `exact_vae`, the way the host loads it: by path, off sys.path."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from exact_vae import VAE
    from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]

# Of several pytest processes each gets its share of the cores. Read by OpenMP when torch is imported first.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
if WORKERS:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

if "exact_vae" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "exact_vae", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exact_vae"] = module
    spec.loader.exec_module(module)

from exact_vae.tests.stub_host.plugin import new_host, old_host, stub_host  # noqa: E402, F401

SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """Profiles of long runs.

    Of `checkpoint/test_fuzz_files.py`, five tests of so many cases; of `checkpoint/test_saved_settings.py`.
    """
    from hypothesis import settings

    settings.register_profile("fuzz-10000", max_examples=2000)
    settings.register_profile("saves-500")


LONGEST = (
    "runs/test_run_exact_failures.py",
    "exact/test_shard.py",
    "training/test_scale.py",
    "training/test_resume.py",
    "training/test_killed.py",
    "families/test_every_family_exact.py",
    "exact/test_planner_prediction.py",
    "exact/test_programs_whole.py",
    "runs/test_run_exact_limits.py",
    "families/test_taef2.py",
    "families/test_diffusers_equality.py",
    "training/test_fit.py",
)
"""Files whose tests take longest. They come first, as wholes: processes that share the tests take them from each
other's end, and then none starts a long one while the others have nothing left, or makes a fixture a second time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first; all others stay in their order."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _libraries_chosen() -> None:
    """What multiplies matrices is timed once in a process, on tensors that no test's meter must see."""
    import torch
    from exact_vae.vae_model.kernels.products import best_product, best_products

    best_product("cpu", torch.float32)
    best_products()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and foreign weights beside the checkout; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with photos and TAEF2 weights is absent")
    return SHARED


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photographs to train on, and one file that is none."""
    from exact_vae.tests.training.case import write_photos

    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors too small to share out: with several threads they mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def inference(one_thread: None) -> Iterator[None]:
    """For tests of the engine: as it runs in use, on one thread."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def no_gradients(one_thread: None) -> Iterator[None]:
    """For tests that may change parameters or take gradients in between: none are kept, on one thread."""
    import torch

    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def small_model() -> nn.Module:
    """A random ldm autoencoder: f8, 4 latent channels, 1.3 million parameters."""
    import torch
    from exact_vae.vae_model.families.ldm.autoencoder import build_kl
    from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig

    levels = LevelsConfig(ch=32, widths=(32, 64, 64, 64), num_res_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_kl(KLConfig(4, 4, levels, levels, num_groups=8)).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_file(small_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` as a safetensors file in ldm layout. Tests that change it change a copy."""
    from exact_vae.vae_model.checkpoint.save import save

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(small_model, path)
    return path


@pytest.fixture
def small_vae(small_file: Path) -> VAE:
    """The VAE of `small_file`, on the CPU in float32."""
    from exact_vae import load_vae

    return load_vae(small_file, device="cpu", dtype="float32")


@pytest.fixture
def state(small_file: Path) -> dict[str, Tensor]:
    """The tensors of `small_file`, to be damaged at will."""
    from safetensors.torch import load_file

    return load_file(small_file)

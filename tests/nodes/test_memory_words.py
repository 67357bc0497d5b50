"""A budget on every door that takes one: the same amounts are read, or refused in one line; beside it other words."""

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, InputError, load_vae
from exact_vae import model_management as mm
from exact_vae.model_management.node_edge import memory_bytes
from exact_vae.vae_model import AutoencoderTiny, Downsample, Upsample
from exact_vae.vae_model.vae import VAE

GIB = 2**30


@pytest.mark.parametrize(
    ("given", "size"),
    [
        *((automatic, None) for automatic in (0, 0.0, None, "", "0", "0.0")),
        *((one, GIB) for one in (1, 1.0, "1", " 1.0 ", "1GiB", "1 gib", "1024MiB")),
        (0.5, GIB // 2),
        ("1GB", 10**9),
    ],
)
def test_a_node_counts_in_gib(given: Any, size: int | None) -> None:
    assert memory_bytes(given) == size


@cache
def _vae() -> VAE:
    return load_vae(device="cpu", dtype="float32")


def _node(name: str, memory: Any) -> Any:
    node: Any = NODE_CLASS_MAPPINGS[name]()
    call = getattr(node, node.FUNCTION)
    z, pixels, mask = {"samples": torch.zeros(1, 16, 4, 4)}, torch.zeros(1, 32, 32, 3), torch.zeros(1, 32, 32)
    known = {"vae": _vae(), "samples": z, "pixels": pixels, "mask": mask, "width": 64, "height": 64}
    wanted = {name: value for name, value in known.items() if name in inspect.signature(call).parameters}
    return call(**wanted, memory=memory)


WITH_MEMORY = [
    n for n, c in NODE_CLASS_MAPPINGS.items() if "memory" in inspect.signature(getattr(c, c.FUNCTION)).parameters
]
DOORS: dict[str, Callable[[Any], Any]] = {
    **{name: lambda memory, name=name: _node(name, memory) for name in WITH_MEMORY},
    "decode": lambda memory: _vae().decode(torch.zeros(1, 16, 4, 4), memory=memory),
    "encode": lambda memory: _vae().encode(torch.zeros(1, 32, 32, 3), memory=memory),
}


@pytest.mark.parametrize("door", list(DOORS))
@pytest.mark.parametrize("memory", [-1, "-1GiB", math.nan, math.inf, "nan", "2 gigabytes", "1PiB", [1], 1e30, b"1GiB"])
def test_what_is_no_amount_is_refused_at_every_door(door: str, memory: Any) -> None:
    with pytest.raises(InputError, match=r"^memory: expected ") as caught:
        DOORS[door](memory)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("door", list(DOORS))
def test_amounts_with_their_unit_are_taken_at_every_door(door: str) -> None:
    for memory in ("2GiB", " 2 Gib ", "2GB", "2Gi"):
        assert DOORS[door](memory) is not None


def test_the_limit_of_a_vae_is_an_amount_too() -> None:
    vae = load_vae(device="cpu", dtype="float32")
    vae.memory_limit = "2GiB"  # pyright: ignore[reportAttributeAccessIssue]
    assert vae.decode(torch.zeros(1, 16, 4, 4)).shape == (1, 32, 32, 3)
    vae.memory_limit = "much"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match=r"^memory: expected an amount"):
        vae.decode(torch.zeros(1, 16, 4, 4))


def test_other_words_of_the_library() -> None:
    state = AutoencoderTiny().state_dict()
    for wrong, meant in (("SDXL", "sdxl"), ("taesdxl", "sdxl"), ("TAESD", "sd")):
        with pytest.raises(InputError, match=f"got '{wrong}': {meant} is probably meant"):
            load_vae(state, latent_format=wrong)
    assert load_vae(device=" CPU ").device == torch.device("cpu")
    assert mm.vae_dtype("cpu", ["float16", "fp32"]) == torch.float32
    with pytest.raises(InputError, match="got 'flaot16': float16 is probably meant"):
        mm.vae_dtype("cpu", ["flaot16"])
    with pytest.raises(TypeError, match="load_models_gpu: expected a sequence of modules or VAEs, got nothing"):
        mm.load_models_gpu(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="expected an amount"):
        mm.load_models_gpu([], memory_required="much")  # pyright: ignore[reportArgumentType]
    for kind in (Downsample, Upsample):
        for channels in ("a", None, 0, 2.5):
            with pytest.raises(
                InputError, match=f"{kind.__name__}: in_channels: expected a whole number of at least 1"
            ):
                kind(channels)  # pyright: ignore[reportArgumentType]

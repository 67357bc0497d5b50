"""Attention functions and layers as the documents have them: images in and out, chosen here, with any memory."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_vae
import pytest
import torch
from exact_vae.model_management import attention as management
from exact_vae.vae_model.attention import backends as attention
from exact_vae.vae_model.families.ldm import layers
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.layers import AttnBlock
from exact_vae.vae_model.families.wan.layers import AttentionBlock
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")

# float64, sums of at most a hundred values of about 1 in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
NAMES = ["pytorch_attention", "normal_attention", "sliced_attention", "streamed_by_blocks", "chosen_attention"]


def images(*shape: int) -> list[Tensor]:
    """q, k, v."""
    generator = torch.Generator().manual_seed(7)
    return list(torch.randn(3, *shape, dtype=torch.float64, generator=generator))


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Over all positions of (B, C, H, W)."""
    weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q.flatten(2), k.flatten(2)) / q.shape[1] ** 0.5, dim=2)
    return torch.einsum("bnm,bcm->bcn", weights, v.flatten(2)).reshape(q.shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 8, 8, 8), (3, 4, 1, 1), (2, 8, 2, 4)])
def test_images_go_in_and_come_out(name: str, shape: tuple[int, ...]) -> None:
    q, k, v = images(*shape)
    out = getattr(attention, name)(q, k, v)
    assert out.shape == q.shape
    torch.testing.assert_close(out, by_hand(q, k, v), **CLOSE)
    tokens = [x.flatten(2).transpose(1, 2) for x in (q, k, v)]
    flat = getattr(attention, name)(*tokens)  # (B, N, C), as before
    torch.testing.assert_close(flat.transpose(1, 2).reshape(q.shape), by_hand(q, k, v), **CLOSE)


def test_slice_attention_takes_the_documents_inner_form() -> None:
    q, k, v = images(2, 6, 5, 3)
    out = attention.slice_attention(q.flatten(2).transpose(1, 2), k.flatten(2), v.flatten(2))
    torch.testing.assert_close(out.reshape(q.shape), by_hand(q, k, v), **CLOSE)
    with pytest.raises(ValueError, match=r"got \(2, 6, 15\), \(2, 6, 15\) and .*or call normal_attention$"):
        attention.slice_attention(q.flatten(2), k.flatten(2), v.flatten(2))


@pytest.mark.parametrize("name", NAMES)
def test_other_shapes_are_one_line(name: str) -> None:
    q = torch.zeros(2, 4, 3, 5)
    tokens = torch.zeros(2, 15, 4)
    for wrong in ((q, q, tokens), (q[0, 0], q[0, 0], q[0, 0]), (q, q[:, :3], q), (q, q, q[:, :, :2]), (q[None],) * 3):
        with pytest.raises(ValueError, match=r"^attention: expected q, k and v as \(batch,.* got .*: reshape them$"):
            getattr(attention, name)(*wrong)


# -- memory ------------------------------------------------------------------------------------------------------------


class Failing:
    """Stands in for PyTorch's attention; fails so many times in some way, then works."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.calls = times, error, 0
        self.real = functional.scaled_dot_product_attention

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.real(*args, **options)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("no more"),
]
CHOICES = {"model_management": management.attend_by, "nobody": attention._by_itself}


@pytest.fixture(params=CHOICES)
def choice(request: pytest.FixtureRequest) -> Any:
    """Both who may choose, and back to what was."""
    before = attention.set_choice(CHOICES[request.param])
    yield request.param
    attention.set_choice(before)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_goes_on_with_slices_outside_of_the_error(
    error: Exception, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[object] = []

    def sliced(*args: Tensor, **options: Any) -> Tensor:
        handled.append(sys.exc_info()[0])
        return real(*args, **options)

    real = attention.sliced_attention
    failing = Failing(99, error)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", failing)
    monkeypatch.setitem(attention.ATTENTION, "sliced", sliced)
    monkeypatch.setattr(attention, "sliced_attention", sliced)
    q, k, v = images(2, 6, 5, 3)
    for function in (attention.pytorch_attention, attention.chosen_attention):
        torch.testing.assert_close(function(q, k, v), by_hand(q, k, v), **CLOSE)
    assert failing.calls == 2
    assert handled == [None, None]


def test_other_errors_are_not_hidden(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", Failing(9, RuntimeError("device assert")))
    with pytest.raises(RuntimeError, match="device assert"):
        attention.pytorch_attention(*images(1, 4, 2, 2))


@pytest.mark.parametrize("error", [None, NotImplementedError("no kernel"), OUT_OF_MEMORY[0]])
def test_xformers_takes_images_and_gives_way(
    error: Exception | None, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []

    def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(tuple(q.shape))
        if error is not None:
            raise error
        return functional.scaled_dot_product_attention(q, k, v)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.ops, ops.memory_efficient_attention = ops, efficient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    q, k, v = images(2, 6, 5, 3)
    torch.testing.assert_close(attention.xformers_attention(q, k, v), by_hand(q, k, v), **CLOSE)
    assert calls == [(2, 15, 6)]


def test_xformers_that_is_absent_says_so(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ImportError):
        attention.xformers_attention(*images(1, 4, 2, 2))


# -- layers on their own -----------------------------------------------------------------------------------------------

DD: dict[str, Any] = {
    "ch": 8, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (16,), "in_channels": 3,
    "resolution": 32, "z_channels": 4, "num_groups": 4,
}  # fmt: skip


def decoded(model: AutoencoderKL, x: Tensor) -> Tensor:
    return model.decode(model.encode(x))


BARE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any, Tensor], Tensor]]] = {
    "AttnBlock": (lambda: AttnBlock(8, num_groups=4), (2, 8, 5, 3), lambda m, x: m(x)),
    "Encoder": (lambda: Encoder(**DD), (1, 3, 12, 10), lambda m, x: m(x)),
    "Decoder": (lambda: Decoder(**DD), (1, 4, 6, 5), lambda m, x: m(x)),
    "AutoencoderKL": (lambda: AutoencoderKL(4, ddconfig=DD, sample_posterior=False), (1, 3, 12, 10), decoded),
    "AttentionBlock of Wan": (lambda: AttentionBlock(8), (2, 8, 5, 3), lambda m, x: m(x)),
}


@pytest.mark.parametrize("name", BARE)
def test_a_bare_model_chooses_by_model_management_and_survives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, run = BARE[name]
    torch.manual_seed(8)
    model = make().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    expected = run(model, x)
    watched = Failing(0, OUT_OF_MEMORY[0])
    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    torch.testing.assert_close(run(model, x), expected, **CLOSE)
    usual = watched.calls
    assert usual > 0
    watched.times, watched.calls = usual, 0  # every attention of this run runs out of memory
    torch.testing.assert_close(run(model, x), expected, **CLOSE)
    assert watched.calls == usual
    watched.calls = 0
    monkeypatch.setattr(management, "pytorch_attention_enabled", lambda: False)
    torch.testing.assert_close(run(model, x), expected, **CLOSE)
    assert watched.calls == 0


def test_optimized_attention_is_the_blocks_own_on_images() -> None:
    block = AttnBlock(6, num_groups=2).double()
    q, k, v = images(2, 6, 5, 3)
    torch.testing.assert_close(block.optimized_attention(q, k, v), by_hand(q, k, v), **CLOSE)
    layers.set_attention(block, lambda q, k, v: 2 * v)
    torch.testing.assert_close(block.optimized_attention(q, k, v), 2 * v, rtol=0, atol=0)


def test_optimized_attention_can_be_replaced() -> None:
    block, x = AttnBlock(6, num_groups=2).double(), images(2, 6, 5, 3)[0]
    expected = block(x)
    shapes: list[tuple[int, ...]] = []

    def of_images(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append(tuple(q.shape[:2]))
        return by_hand(q, k, v)

    block.optimized_attention = of_images
    torch.testing.assert_close(block(x), expected, **CLOSE)
    assert shapes == [(2, 6)]
    torch.testing.assert_close(block.optimized_attention(x, x, x), by_hand(x, x, x), **CLOSE)


def test_a_training_is_not_timed_and_has_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """From many positions on, back ends are tried against each other; one of them has no gradient."""
    assert management.WORTH_TIMING > 4
    monkeypatch.setattr(management, "WORTH_TIMING", 4)
    monkeypatch.setattr(management, "fastest_first", lambda names, *_: ("streamed",))
    q, k, v = (x.requires_grad_() for x in images(2, 6, 5, 3))
    weights = images(2, 6, 5, 3)[0]
    wanted = torch.autograd.grad((by_hand(q, k, v) * weights).sum(), (q, k, v))
    got = torch.autograd.grad((attention.chosen_attention(q, k, v) * weights).sum(), (q, k, v))
    torch.testing.assert_close(got, wanted, **CLOSE)


ALONE = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("exact_vae", sys.argv[1] + "/__init__.py",
    submodule_search_locations=[sys.argv[1]])
sys.modules["exact_vae"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["exact_vae"])
from torch.nn import functional
from exact_vae.vae_model.families.ldm.layers import AttnBlock
def fail(*args, **options):
    raise torch.OutOfMemoryError("CUDA out of memory.")
block, x = AttnBlock(8, num_groups=4), torch.randn(1, 8, 3, 3)
expected = block(x)
functional.scaled_dot_product_attention = fail
assert torch.allclose(block(x), expected, atol=1e-6)
assert not any(name.startswith("exact_vae.model_management") for name in sys.modules)
import exact_vae.model_management
from exact_vae.vae_model.attention import backends as attention
assert attention._choice.__module__ == "exact_vae.model_management.attention"
"""


def test_the_layers_do_not_need_model_management_and_follow_it_once_it_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(Path(exact_vae.__file__).parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

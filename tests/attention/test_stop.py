"""A cancel is looked for in the middle of attention, whichever back end runs, and looking changes nothing."""

from dataclasses import replace

import pytest
import torch
from exact_vae.model_management import attention
from exact_vae.model_management.attention import attend
from exact_vae.model_management.host import LocalHost
from exact_vae.vae_model.attention.backends import ATTENTION, pytorch_attention
from exact_vae.vae_model.kernels.profile import PROFILES
from torch import Tensor


class Cancelled(Exception):
    pass


@pytest.fixture
def qkv(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """50 queries of two images among 64 keys, of which 16 at a time are worth a look in between."""
    seldom = replace(PROFILES["cpu"], work_between_checks=16 * 4 * 2 * 64 * 8)
    monkeypatch.setitem(PROFILES, "cpu", seldom)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, tokens, 8, dtype=torch.float64) for tokens in (50, 64, 64))
    return q, k, v


def test_between_slices_of_queries(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    looked: list[int] = []
    out = attend(*qkv, check=lambda: looked.append(1))
    assert len(looked) == 4  # 50 queries, 16 at a time
    # float64, the same kernel: only the order of summing may differ.
    torch.testing.assert_close(out, pytorch_attention(*qkv), rtol=1e-12, atol=1e-12)


def test_inside_the_back_end_that_can(monkeypatch: pytest.MonkeyPatch, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    monkeypatch.setattr(attention, "WORTH_TIMING", 1)
    monkeypatch.setattr(attention, "fastest_first", lambda names, *_: ("streamed", *names[:-1]))
    looked: list[int] = []
    out = attend(*qkv, check=lambda: looked.append(1))
    assert looked
    # The softmax is merged in float64, in another order.
    torch.testing.assert_close(out, pytorch_attention(*qkv), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["pytorch", "streamed"])
def test_what_the_check_raises_ends_it(
    monkeypatch: pytest.MonkeyPatch, qkv: tuple[Tensor, Tensor, Tensor], backend: str
) -> None:
    """A host's own class of errors, through LocalHost as the engine calls it."""
    monkeypatch.setattr(attention, "WORTH_TIMING", 1)
    monkeypatch.setattr(attention, "fastest_first", lambda names, *_: (backend, *ATTENTION.keys() - {backend}))

    def cancel() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        LocalHost(cancel).attend(*qkv)

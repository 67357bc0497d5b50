"""Building a model whose numbers come from a file: none are drawn, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae.tests.families.table import ROWS
from exact_vae.vae_model.checkpoint.load import WithoutNumbers, load_model
from exact_vae.vae_model.families.table import FAMILIES
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Drawn(TorchFunctionMode):
    """Keeps the names of the random functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("uniform_", "normal_"):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_loading_draws_no_numbers(state: dict[str, Tensor]) -> None:
    with Drawn() as plain:
        nn.Conv2d(3, 3, 3)
    assert plain.names  # what is looked for is what PyTorch does
    with Drawn() as drawn:
        loaded = load_model(state, config={"norm_num_groups": 8})
    assert drawn.names == []
    assert all(torch.equal(loaded.model.state_dict()[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", ROWS)
def test_the_model_is_otherwise_the_same(name: str) -> None:
    row = ROWS[name]
    with torch.device("meta"):
        plain = FAMILIES[row.family].build(row.config)
        with WithoutNumbers():
            empty = FAMILIES[row.family].build(row.config)
    assert str(empty) == str(plain)
    own, theirs = empty.state_dict(), plain.state_dict()
    assert own.keys() == theirs.keys()
    for key, tensor in own.items():
        assert (tensor.shape, tensor.dtype, tensor.is_meta) == (theirs[key].shape, theirs[key].dtype, True)


def test_what_is_built_behind_it_has_numbers() -> None:
    with WithoutNumbers():
        pass
    assert nn.Conv2d(3, 3, 3).weight.detach().std() > 0

"""The exponential moving average of a model's parameters.

Source: `LitEma` of Stability-AI generative-models `sgm/modules/ema.py` (MIT): same numbers and buffer names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...errors.listed import some
from ..arguments import AVERAGE, require_kinds

_operations: Any = torch  # its operations on lists, which its optimisers use, have names that begin with an underscore


class LitEma(nn.Module):
    """Shadows of a model's trainable parameters, buffers named like them without the dots.

    Step n = 1, 2, ... moves every shadow by (1 - d) of its distance to the parameter, d = min(decay, (1 + n) / (10 +
    n)); without `use_num_upates` (spelled as in its source) d is the decay from the start. Shadows are float32, or
    float64 for float64 parameters, whatever the model is cast to. Buffers of the model (BatchNorm) are not followed.
    A parameter that becomes trainable later gets its shadow at the next step, from its value then.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True) -> None:
        require_kinds("LitEma", {"model": model, "decay": decay, "use_num_upates": use_num_upates}, AVERAGE)
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: expected 0 to 1, got {decay}: choose a decay between them")
        self.m_name2s_name: dict[str, str] = {}
        self.register_buffer("decay", torch.tensor(float(decay), dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_upates else -1, dtype=torch.int))
        self._stored: list[list[Tensor]] = []
        self._follow(model)

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """One step towards the model's parameters."""
        require_kinds("LitEma", {"model": model}, AVERAGE)
        self._follow(model)
        counting = (self.num_updates >= 0).to(self.num_updates)  # without waiting for a GPU
        self.num_updates += counting
        warm_up = (1 + self.num_updates) / (10 + self.num_updates)
        step = 1.0 - torch.where(counting > 0, torch.minimum(self.decay, warm_up), self.decay)
        groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for shadow, parameter in self._pairs(model):
            groups.setdefault((type(shadow), shadow.dtype, shadow.device), []).append((shadow, parameter.to(shadow)))
        for (_, _, device), pairs in groups.items():  # all at once: a GPU would wait for so many small steps
            shadows, parameters = [shadow for shadow, _ in pairs], [parameter for _, parameter in pairs]
            moves = _operations._foreach_sub(shadows, parameters)
            _operations._foreach_mul_(moves, step.to(device))
            _operations._foreach_sub_(shadows, moves)

    def reset_num_updates(self) -> None:
        """Begin the warm-up of the decay again."""
        self.num_updates.zero_()

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters with the shadows, in the parameters' dtypes and on their devices."""
        require_kinds("LitEma", {"model": model}, AVERAGE)
        for shadow, parameter in self._pairs(model):
            parameter.copy_(shadow)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep copies of these parameters for `restore`; several may be kept, the last is restored first."""
        self._stored.append([parameter.detach().clone() for parameter in _listed(parameters, "store")])

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put back what the last `store` kept, in the same order of parameters; RuntimeError where nothing fits."""
        targets = _listed(parameters, "restore")
        kept = self._stored[-1] if self._stored else []
        if not self._stored or len(kept) != len(targets):
            raise RuntimeError(
                f"restore: expected the parameters of the last store, got {len(targets)} for {len(kept)} kept: "
                "store first"
            )
        for number, (parameter, copy) in enumerate(zip(targets, kept, strict=True)):
            if parameter.shape != copy.shape:  # told before anything is changed; what was kept stays
                raise RuntimeError(
                    f"restore: expected the parameters of the last store, got {tuple(parameter.shape)} for "
                    f"{tuple(copy.shape)} at {number}: give the same model"
                )
        for parameter, copy in zip(targets, self._stored.pop(), strict=True):
            parameter.copy_(copy)

    def _follow(self, model: nn.Module) -> None:
        """Start shadows of trainable parameters that have none; ValueError where two names would be one."""
        owners = {shadow: name for name, shadow in self.m_name2s_name.items()}
        new = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in self.m_name2s_name
        }
        collisions: list[str] = []
        for name in new:
            shadow = name.replace(".", "")
            if shadow in owners or hasattr(self, shadow):
                collisions.append(f"{name} and {owners.get(shadow, 'a part of LitEma')}")
            owners[shadow] = name
        if collisions:
            found = some(sorted(collisions), between="; ")
            raise ValueError(f"LitEma: expected names that differ without their dots, got {found}: rename one")
        for name, parameter in new.items():
            shadow = name.replace(".", "")
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self.register_buffer(shadow, parameter.detach().clone().to(dtype))
            self.m_name2s_name[name] = shadow

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, nn.Parameter]]:
        """Every shadow with its parameter."""
        parameters = dict(model.named_parameters())
        missing = sorted(name for name in self.m_name2s_name if name not in parameters)
        if missing:
            raise ValueError(
                f"LitEma: expected the model it was made for, got one without {some(missing)}: give that one"
            )
        pairs = {name: (self.get_buffer(shadow), parameters[name]) for name, shadow in self.m_name2s_name.items()}
        odd = [name for name, (shadow, parameter) in pairs.items() if shadow.shape != parameter.shape]
        if odd:
            raise ValueError(
                f"LitEma: expected the model it was made for, got other shapes of {some(odd)}: give that one"
            )
        return list(pairs.values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow the model to other devices but never to fewer bits: a step of 1e-4 is lost in 16."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrower = torch.promote_types(moved.dtype, tensor.dtype) != moved.dtype
            return tensor.to(moved.device) if narrower else moved

        return super()._apply(move, recurse)


def _listed(parameters: Any, what: str) -> list[nn.Parameter]:
    """Parameters as a list; InputError for anything else, a model too."""
    found: list[Any] = list(parameters) if isinstance(parameters, Iterable) else [parameters]  # pyright: ignore
    if isinstance(parameters, str) or not all(isinstance(one, Tensor) for one in found):
        kind = type(parameters).__name__  # pyright: ignore[reportUnknownArgumentType]
        raise InputError(f"{what}: expected parameters, got {kind}: pass those of the model, by model.parameters()")
    return found

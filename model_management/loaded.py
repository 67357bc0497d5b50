"""Which models are on which device, and moving the least recently used ones out when room is needed.

The models are held by weak references alone: what nobody else holds is gone, here too. What is on the offload device
is never counted, for moving it out would free nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..vae_model.errors import InputError
from ..vae_model.errors.bytesize import parse_bytes
from .devices import as_device, canonical_device, vae_device, vae_offload_device
from .memory import get_free_memory, soft_empty_cache
from .oom import is_oom


class LoadedModels:
    """Models on devices, in the order of their last use. Calls from several threads wait for each other."""

    def __init__(
        self,
        offload_device: torch.device | None = None,
        get_free_memory: Callable[[torch.device], int] = get_free_memory,
        soft_empty_cache: Callable[[], None] = soft_empty_cache,
    ) -> None:
        """`offload_device`: where models go when they must leave, `vae_offload_device()` when None.

        `get_free_memory(device)` tells bytes, `soft_empty_cache()` gives cached blocks back after a move.
        """
        self._offload_device = canonical_device(offload_device or vae_offload_device())
        self._get_free_memory = get_free_memory
        self._soft_empty_cache = soft_empty_cache
        # The one used longest ago comes first.
        self._places: weakref.WeakKeyDictionary[nn.Module, torch.device] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def current(self) -> list[nn.Module]:
        """The live models on devices other than the offload device, the one used longest ago first."""
        with self._lock:
            return list(self._places)

    def load_model(
        self, model: nn.Module, device: torch.device, memory_required: int = 0, keep: Sequence[nn.Module] = ()
    ) -> None:
        """Put `model` on `device` and note the use. Others leave until it and `memory_required` bytes more fit.

        If it still does not fit, all others on the device leave and the move is tried once more; the second
        out-of-memory error reaches the caller. A model may end up with less than `memory_required` bytes beside it:
        what is free is then for the caller to ask and to plan by. `keep`: others that stay whatever happens.
        """
        device = canonical_device(device)
        with self._lock:
            if device == self._offload_device:
                self.unload_model(model)
                return
            stay = [model, *keep]
            self.free_memory(_bytes_to_move(model, device) + memory_required, device, keep=stay)
            self._places.pop(model, None)
            self._places[model] = device
            try:
                _move(model, device)
            except (RuntimeError, MemoryError) as error:  # what had moved already stays there
                if not is_oom(error):
                    raise
            else:
                return
            self._evict(device, keep=stay, enough=lambda: False)
            _move(model, device)

    def unload_model(self, model: nn.Module) -> None:
        """Move `model` to the offload device and forget it. A model that was never loaded is moved all the same."""
        with self._lock:
            moved = _move(model, self._offload_device)
            self._places.pop(model, None)
            if moved:
                self._soft_empty_cache()

    def unload_all_models(self) -> None:
        """Move every model to the offload device and forget it."""
        with self._lock:
            for model in self.current():
                self.unload_model(model)

    def free_memory(self, bytes_needed: int, device: torch.device, keep: Sequence[nn.Module] = ()) -> int:
        """Move models out, the one used longest ago first, until `bytes_needed` bytes are free on `device`.

        Args:    keep: models that stay whatever happens.
        Returns: bytes of weights that left; 0 where enough was free or nothing could leave.
        """
        device = canonical_device(device)
        with self._lock:
            return self._evict(device, keep, enough=lambda: self._get_free_memory(device) >= bytes_needed)

    def _evict(self, device: torch.device, keep: Sequence[nn.Module], enough: Callable[[], bool]) -> int:
        freed_bytes = 0
        for model in self.current():
            if any(model is kept for kept in keep) or self._places.get(model) != device:
                continue
            if enough():
                break
            freed_bytes += _bytes_to_move(model, self._offload_device)
            self.unload_model(model)
        return freed_bytes


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers, each once although modules may share them."""
    return {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()


def _bytes_to_move(model: nn.Module, device: torch.device) -> int:
    """Bytes of the model's tensors that are elsewhere."""
    return sum(tensor.nbytes for tensor in _tensors(model) if canonical_device(tensor.device) != device)


def _move(model: nn.Module, device: torch.device) -> bool:
    """Whether there was anything to move."""
    if not _bytes_to_move(model, device):
        return False
    # Moved under inference mode, parameters would become inference tensors and never train again. Those that are such
    # tensors already, because they were made so, must be moved so: else they are of use in neither mode.
    with torch.inference_mode(any(tensor.is_inference() for tensor in _tensors(model))), torch.no_grad():
        model.to(device)
    return True


# One registry for the process, because the memory it shares out belongs to the process: two registries would each
# take the other's models for memory that nobody can free.
_PROCESS_MODELS = LoadedModels()


def load_model(model: nn.Module, device: torch.device | str, memory_required: int | str = 0) -> None:
    """`LoadedModels.load_model` of the process's own registry, for a module or a VAE; InputError for anything else."""
    _PROCESS_MODELS.load_model(_module(model, "load_model"), as_device(device), _amount(memory_required))


def unload_model(model: nn.Module) -> None:
    """`LoadedModels.unload_model` of the process's own registry, for a module or a VAE."""
    _PROCESS_MODELS.unload_model(_module(model, "unload_model"))


def _module(given: Any, what: str) -> nn.Module:
    model: Any = getattr(given, "first_stage_model", given)
    if not isinstance(model, nn.Module):
        found = "nothing" if given is None else type(given).__name__
        raise InputError(f"{what}: expected a module or a VAE, got {found}: give one that load_vae made")
    return model


def _amount(given: Any) -> int:
    """Bytes, also as text with a unit; nothing is none."""
    return 0 if isinstance(given, int) and given == 0 else parse_bytes(given)


def unload_all_models() -> None:
    """`LoadedModels.unload_all_models` of the process's own registry."""
    _PROCESS_MODELS.unload_all_models()


def load_models_gpu(models: Iterable[Any], memory_required: int = 0) -> None:
    """Put all of them where VAEs compute, together, with `memory_required` bytes beside them; others leave for it.

    Args:    models: modules, or VAEs, which go to their own device.
    Raises:  TypeError for anything else, PyTorch's out-of-memory error where they do not fit together.
    """
    if not isinstance(models, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = "nothing" if models is None else type(models).__name__
        raise TypeError(f"load_models_gpu: expected a sequence of modules or VAEs, got {found}: put it into a list")
    amount, places = _amount(memory_required), list[tuple[nn.Module, torch.device]]()
    for given in models:
        model: Any = getattr(given, "first_stage_model", given)
        if not isinstance(model, nn.Module):
            kind = type(given).__name__
            raise TypeError(f"load_models_gpu: expected modules or VAEs, got {kind}: give those that load_vae made")
        places.append((model, vae_device() if model is given else given.device))
    together = [model for model, _ in places]
    for model, device in places:
        _PROCESS_MODELS.load_model(model, device, amount, keep=together)


def free_memory(bytes_needed: int | str, device: torch.device | str, keep: Sequence[nn.Module] = ()) -> int:
    """`LoadedModels.free_memory` of the process's own registry."""
    return _PROCESS_MODELS.free_memory(_amount(bytes_needed), as_device(device), keep)

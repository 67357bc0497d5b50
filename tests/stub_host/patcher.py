"""The imitated comfy.model_patcher.ModelPatcher: it owns a model, applies object patches, and can be cloned."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

from torch import nn

from .host import StubHost


class StubPatcher:
    """What is asked of a patcher. `host` is set on the class that `make_patcher` returns."""

    host: StubHost

    def __init__(self, model: nn.Module, load_device: Any, offload_device: Any, size: int = 0, **_: Any) -> None:
        self.model, self.size = model, size
        self.load_device, self.offload_device = load_device, offload_device
        self.patches: dict[str, tuple[Any, ...]] = {}
        self.object_patches: dict[str, Any] = {}
        self.object_patches_backup: dict[str, Any] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.callbacks: dict[str, dict[str, list[Any]]] = {}
        self.parent: StubPatcher | None = None
        self.loaded = False

    def model_size(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.model.state_dict().values())

    def loaded_size(self) -> int:
        return self.model_size() if self.loaded else 0

    def load(self) -> None:
        """What load_models_gpu does with a patcher: what a clone patched in the shared model is taken back first."""
        self.loaded = True
        self.model.device = self.load_device
        self._patch_weights()
        for name, value in self.object_patches.items():
            owner, _, attribute = name.rpartition(".")
            module = self.model.get_submodule(owner)
            self.object_patches_backup.setdefault(name, getattr(module, attribute))
            setattr(module, attribute, value)

    def _patch_weights(self) -> None:
        model: Any = self.model
        state, backup = model.state_dict(), vars(model).setdefault("stub_backup", {})
        for name, weight in backup.items():
            state[name].copy_(weight)
        backup.clear()
        for name, (weight,) in self.patches.items():
            backup[name] = state[name].clone()
            state[name].copy_(weight)

    def add_patches(
        self, patches: dict[str, tuple[Any, ...]], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[str]:
        """Weights that take the place of the model's once it is loaded: (1.0, 0.0) is all that is imitated."""
        assert (strength_patch, strength_model) == (1.0, 0.0)
        self.patches.update(patches)
        return list(patches)

    def add_object_patch(self, name: str, obj: Any) -> None:
        self.object_patches[name] = obj

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name) or self.model.get_submodule(name)

    def add_callback_with_key(self, call_type: str, key: str, callback: Any) -> None:
        self.callbacks.setdefault(call_type, {}).setdefault(key, []).append(callback)

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        return self.model.state_dict()

    def clone(self, **_: Any) -> Any:
        """Another patcher of the same model, or of a copy of it where the host is told to copy."""
        shared = self.host.clones_share_model or not self.host.new
        twin = type(self)(self.model if shared else copy.deepcopy(self.model), self.load_device, self.offload_device)
        twin.patches = dict(self.patches)
        twin.object_patches = dict(self.object_patches)
        twin.model_options = copy.deepcopy(self.model_options)
        twin.callbacks = copy.copy(self.callbacks)
        twin.parent = self
        return twin


class NewPatcher(StubPatcher):
    """With what newer versions add."""

    cached_patcher_init: Any = None

    def is_dynamic(self) -> bool:
        return True

    def get_free_memory(self, device: Any) -> int:
        """Free memory, counting what dynamic weights of others would give up."""
        return self.host.free_bytes + self.host.evictable_bytes


def make_patcher(host: StubHost) -> ModuleType:
    """comfy.model_patcher."""
    module: Any = ModuleType("comfy.model_patcher")
    base = NewPatcher if host.new else StubPatcher
    module.ModelPatcher = type("ModelPatcher", (base,), {"host": host})
    module.CoreModelPatcher = module.ModelPatcher
    return module

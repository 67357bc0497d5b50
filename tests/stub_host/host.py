"""What a test sets of the imitated host, and what the code under test did to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

GIB = 2**30


@dataclass
class StubHost:
    """One imitated ComfyUI. `new` chooses between v0.3.64 (False) and the interfaces of newer versions (True).

    First what a test may change at any time, then the record, which a test may clear with `forget`.
    """

    new: bool
    free_bytes: int = 8 * GIB
    """Free on the device. Loading a model takes nothing from it."""
    evictable_bytes: int = 0
    """Size of a loaded diffusion model. It goes when more room is asked for than is free."""
    interrupt_at: int | None = None
    """The number, from 1, of the interrupt check that finds the user's cancel."""
    fp16_intermediates: bool = False
    """New only: images between nodes are float16."""
    clones_share_model: bool = True
    """New only: False when cloning a patcher copies the model, as for another device."""
    lends: bool = True
    """New only: whether every weight is handed out as a copy that ends with its release, as where weights wait in main
    memory; else those that nothing is done to are the stored ones, as where the model is on its device."""
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Model files by kind and name: {"vae": {"a.safetensors": path}}."""
    node_id: str | None = "5"
    made_by: dict[str, str] = field(default_factory=dict)
    """{node: the node on the page that made it while it ran}"""
    prompt_id: str | None = "prompt-1"

    memory_required: list[int] = field(default_factory=list)
    """What each load_models_gpu was asked to keep free."""
    evictions: list[int] = field(default_factory=list)
    """The requests that made the diffusion model go."""
    fetched: Counter[str] = field(default_factory=Counter)
    """Weights fetched through the host's casting, by layer name."""
    pinned: Counter[str] = field(default_factory=Counter)
    """New only: fetched with offloadable=True and not released yet."""
    interrupt_checks: int = 0
    progress: list[tuple[float, float]] = field(default_factory=list)
    """(value, total) of every update that reached the host's hook."""
    events: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    """Messages to the browser: (event, data, client)."""
    cache_emptied: int = 0
    entered: Counter[str] = field(default_factory=Counter)
    """New only: how often cuda_device_context and pause_malloc_graph were entered."""
    calls: list[str] = field(default_factory=list)
    """The VAE's own methods that ran: "decode", "decode_tiled", ... and "model.decode_tiled" of a self-tiling model."""

    modules: dict[str, ModuleType] = field(default_factory=dict)
    make_vae: Callable[..., Any] = field(default=lambda *_: None)
    """make_vae(kind="kl", ...): see tree.py for the kinds and vae.py for the object."""

    def forget(self) -> None:
        """Clear the record."""
        for name in ("memory_required", "evictions", "fetched", "pinned", "progress", "events", "entered", "calls"):
            getattr(self, name).clear()
        self.interrupt_checks = self.cache_emptied = 0

    @property
    def interrupt(self) -> type[BaseException]:
        """The class that a cancelled run raises."""
        return self.modules["comfy.model_management"].InterruptProcessingException

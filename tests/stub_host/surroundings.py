"""The imitated comfy.utils, server, folder_paths and comfy_execution.utils."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from safetensors.torch import load_file

from .host import StubHost

NEW_HOOK_EVERY = 5
"""Newer hosts pass on only some updates; here every fifth and the last."""


def make_utils(host: StubHost) -> ModuleType:
    """comfy.utils: the progress bar, whose hook also looks for a cancel in v0.3.64, and a file reader."""
    module: Any = ModuleType("comfy.utils")

    class ProgressBar:
        def __init__(self, total: float, node_id: Any = None) -> None:
            self.total, self.current, self.node_id, self.updates = total, 0.0, node_id, 0

        def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
            self.total = self.total if total is None else total
            self.current = min(value, self.total)
            self.updates += 1
            if host.new and self.updates % NEW_HOOK_EVERY and self.current < self.total:
                return
            host.modules["comfy.model_management"].throw_exception_if_processing_interrupted()
            host.progress.append((self.current, self.total))

        def update(self, value: float) -> None:
            self.update_absolute(self.current + value)

    def load_torch_file(ckpt: Any, safe_load: bool = False, device: Any = None, return_metadata: bool = False) -> Any:
        state = load_file(str(ckpt))
        return (state, {}) if return_metadata else state

    module.ProgressBar, module.load_torch_file = ProgressBar, load_torch_file
    module.PROGRESS_BAR_ENABLED = True
    return module


def make_server(host: StubHost) -> ModuleType:
    """server: the object that sends messages to the browser."""
    module: Any = ModuleType("server")

    class Instance:
        client_id = "client-1"
        routes = SimpleNamespace(get=lambda path: lambda handler: handler, post=lambda path: lambda handler: handler)

        @property
        def last_node_id(self) -> str | None:
            return host.node_id

        @property
        def last_prompt_id(self) -> str | None:
            return host.prompt_id

        def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
            host.events.append((event, data, sid))

    module.PromptServer = type("PromptServer", (), {"instance": Instance()})
    return module


def make_folder_paths(host: StubHost) -> ModuleType:
    """folder_paths: the lists of model files, from `host.files`."""
    module: Any = ModuleType("folder_paths")

    def get_full_path(kind: str, name: str) -> str | None:
        path = host.files.get(kind, {}).get(name)
        return None if path is None else str(path)

    def get_full_path_or_raise(kind: str, name: str) -> str:
        path = get_full_path(kind, name)
        if path is None:
            raise FileNotFoundError(f"no {kind} file is called {name}")
        return path

    def get_folder_paths(kind: str) -> list[str]:
        parents: Iterable[Path] = (path.parent for path in host.files.get(kind, {}).values())
        return sorted({str(parent) for parent in parents})

    module.get_filename_list = lambda kind: sorted(host.files.get(kind, {}))
    module.get_full_path, module.get_full_path_or_raise = get_full_path, get_full_path_or_raise
    module.get_folder_paths = get_folder_paths
    module.folder_names_and_paths = {"vae": ([], set()), "vae_approx": ([], set())}
    return module


def make_execution(host: StubHost) -> ModuleType:
    """comfy_execution.utils: which node runs now."""
    module: Any = ModuleType("comfy_execution.utils")

    def get_executing_context() -> Any:
        if host.node_id is None:
            return None
        return SimpleNamespace(prompt_id=host.prompt_id, node_id=host.node_id, list_index=0)

    module.get_executing_context = get_executing_context
    return module


def make_execution_progress(host: StubHost) -> ModuleType:
    """comfy_execution.progress: the node on the page that a running node stands for."""
    module: Any = ModuleType("comfy_execution.progress")
    dynprompt = SimpleNamespace(get_display_node_id=lambda node: host.made_by.get(node, node))
    module.get_progress_state = lambda: SimpleNamespace(dynprompt=dynprompt)
    return module

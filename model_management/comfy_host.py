"""ComfyUI, where this process is ComfyUI: the only file that touches the host's modules.

Nothing is imported before the host has imported it itself, and every name is looked up when it is needed, with another
way where it is missing: names differ between versions, and versions are never asked for.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Generator
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..vae_model.checkpoint.load import LoadedModel
from ..vae_model.exact.stream.context import own_weights
from ..vae_model.host import Report
from ..vae_model.vae import VAE
from . import memory, oom
from .host import LocalHost

logger = logging.getLogger(__name__)

PROGRESS_EVENT = "exact_vae.progress"
_STEPS = 1000
_SECONDS_BETWEEN_EVENTS = 0.2


def is_comfyui() -> bool:
    """Whether this process is ComfyUI with its memory management in place."""
    return "comfy.model_management" in sys.modules


def list_files(folder: str) -> list[str]:
    """Names of the host's model files of a kind ("vae"); empty outside ComfyUI."""
    host = sys.modules.get("folder_paths")
    return [] if host is None else cast(list[str], list(host.get_filename_list(folder)))


def find_file(folder: str, name: str) -> str:
    """The path of a name that `list_files` gave."""
    return cast(str, sys.modules["folder_paths"].get_full_path_or_raise(folder, name))


def management() -> Any:
    """`comfy.model_management`."""
    return sys.modules["comfy.model_management"]


class ComfyHost(LocalHost):
    """Memory, weights, interruption and progress by ComfyUI's rules for one model, which `patcher` stands for."""

    def __init__(self, patcher: Any, *, full_load: bool = False) -> None:
        """`full_load`: the weights are never left in main memory, as some VAEs ask for."""
        super().__init__()
        self.patcher, self.full_load = patcher, full_load
        self._bar: Any = None
        self._last_event = 0.0

    def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> bool | None:
        management().load_models_gpu([self.patcher], memory_required=memory_required, force_full_load=self.full_load)
        return None  # the patcher's patches are in place now, those of other packs among them

    def get_free_memory(self, device: torch.device) -> int:
        if device.type == "cpu":
            return memory.get_free_memory(device)  # the host's own number does not know containers
        # Newer hosts count weights that they would take back as free; only the patcher knows.
        ask = getattr(self.patcher, "get_free_memory", None) or management().get_free_memory
        return int(ask(device))

    def soft_empty_cache(self) -> None:
        management().soft_empty_cache()

    def is_oom(self, error: BaseException) -> bool:
        theirs = getattr(management(), "is_oom", None)
        return oom.is_oom(error) or isinstance(error, management().OOM_EXCEPTION) or bool(theirs and theirs(error))

    def weights(self, layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        if not hasattr(layer, "comfy_cast_weights"):
            return own_weights(layer, like)
        ops = import_module("comfy.ops")
        if not hasattr(ops, "CastBiasWeightContext"):
            weight, bias = ops.cast_bias_weight(layer, like)[:2]
            return weight, bias
        weight, bias, state = ops.cast_bias_weight(layer, like, offloadable=True)
        if not _is_lent(state):
            return weight, bias
        try:  # the host may use the memory for the next layer
            return weight.clone(), None if bias is None else bias.clone()
        finally:
            ops.uncast_bias_weight(layer, weight, bias, state)

    def is_cast(self, layer: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
        """Also where the host patches a weight whenever it is used, or leaves it in main memory."""
        patched = any(getattr(layer, f"{name}_function", ()) for name in ("weight", "bias"))
        away = not self.full_load and cast(Tensor, layer.weight).device.type not in ("meta", device.type)
        return patched or away or super().is_cast(layer, dtype, device)

    def check_interrupt(self) -> None:
        management().throw_exception_if_processing_interrupted()

    def tell(self, report: Report, fraction: float, done: bool) -> None:
        """Move the host's progress bar, which may raise the user's cancel, and send the line for the node."""
        if self._bar is None:
            self._bar = import_module("comfy.utils").ProgressBar(_STEPS)
        now = time.monotonic()
        if done or now - self._last_event >= _SECONDS_BETWEEN_EVENTS:
            self._last_event = 0.0 if done else now
            _send(report, fraction, done)
            if not done or fraction >= 1:
                self._bar.update_absolute(int(fraction * _STEPS), _STEPS)
        if done:
            self._bar = None

    def show(self, report: Report) -> None:
        """Send a report that is whole, of a run that was not told of while it lasted."""
        _send(report, 1.0, True)

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Generator[None]:
        """Around a run: the device is current, and nothing of it is recorded into a graph of the host's."""
        with contextlib.ExitStack() as stack:
            set_device = getattr(management(), "cuda_device_context", None)
            if set_device is not None:
                stack.enter_context(set_device(device))
            pause = getattr(sys.modules.get("comfy.model_prefetch"), "pause_malloc_graph", None)
            if pause is not None:
                stack.enter_context(pause())
            yield


def _is_lent(state: Any) -> bool:
    """Whether weights lie in memory of the host's that has to be given back: in a buffer behind a stream of copies, or
    pinned. Else they are the layer's own, or a copy in another dtype that nobody else holds.
    """
    stream, first = state[:2]
    return stream is not None or not (first is None or isinstance(first, Tensor))


def output_dtype() -> torch.dtype:
    """The dtype of images and latents between nodes."""
    ask = getattr(management(), "intermediate_dtype", None)
    return torch.float32 if ask is None else cast(torch.dtype, ask())


class HostedVAE(VAE):
    """A VAE of ours inside ComfyUI: what the host's nodes change of it, patcher and devices, counts at the next run.

    They clone `patcher`, patch the clone and put it here, on this object or on a shallow copy.
    """

    def __init__(  # pyright: ignore[reportInconsistentConstructor]
        self, loaded: LoadedModel, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        # By a patcher the host loads and unloads a model of ours like its own.
        self.patcher = import_module("comfy.model_patcher").ModelPatcher(
            loaded.model, load_device=device, offload_device=management().vae_offload_device()
        )
        output_device = management().intermediate_device()
        super().__init__(loaded, self._new_host(), device=device, dtype=dtype, output_device=output_device)
        self.not_video = False  # as the host's own VAEs take a batch

    @property
    def host(self) -> ComfyHost:
        """The host's memory, weights and progress, by the patcher that is here now."""
        if self._host.patcher is not self.patcher:
            self._host = self._new_host()
        return self._host

    def _new_host(self) -> ComfyHost:
        # Layers of ours are moved as a whole: the host casts and offloads only its own one by one.
        return ComfyHost(self.patcher, full_load=True)

    def vae_output_dtype(self) -> torch.dtype:
        """What the host wants between nodes."""
        return output_dtype()

    def decode(self, *args: Any, **options: Any) -> Tensor:
        """As VAE's, in the host's dtype; `samples_in` is the host's word for `samples`."""
        return super().decode(*args, **_named(options, "samples_in", "samples")).to(self.vae_output_dtype())

    def encode(self, *args: Any, **options: Any) -> Tensor:
        """As VAE's, in the host's dtype; `pixel_samples` is the host's word for `pixels`."""
        return super().encode(*args, **_named(options, "pixel_samples", "pixels")).to(self.vae_output_dtype())


def _named(options: dict[str, Any], theirs: str, ours: str) -> dict[str, Any]:
    """With our name for an argument."""
    return {ours if name == theirs else name: value for name, value in options.items()}


def _send(report: Report, fraction: float, done: bool) -> None:
    """To the page that runs the workflow; never an error of the run."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    node, prompt = _executing(server)
    if server is None or node is None:
        return
    data = {
        "node": node,
        "display_node": _shown_for(node),
        "prompt_id": prompt,
        "fraction": fraction,
        "line": report.line if done else report.running_line(fraction),
        **report.memory,
        "done": done,
        "report": report.as_dict() if done and report.stopped is None else None,
        "stopped": report.stopped,
    }
    try:
        server.send_sync(PROGRESS_EVENT, data, getattr(server, "client_id", None))
    except Exception:
        logger.debug("progress was not sent", exc_info=True)


def _executing(server: Any) -> tuple[str | None, str | None]:
    """The node that runs now and its prompt."""
    ask = getattr(sys.modules.get("comfy_execution.utils"), "get_executing_context", None)
    context = ask() if ask is not None else None
    if context is not None:
        return context.node_id, context.prompt_id
    return getattr(server, "last_node_id", None), getattr(server, "last_prompt_id", None)


def _shown_for(node: str) -> str:
    """The node on the page that a node stands for: one that another made while it ran is not there itself."""
    ask = getattr(sys.modules.get("comfy_execution.progress"), "get_progress_state", None)
    try:
        return node if ask is None else cast(str, ask().dynprompt.get_display_node_id(node))
    except Exception:  # outside of a prompt, or a host that keeps it elsewhere
        return node

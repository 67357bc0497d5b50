"""Bytes, devices and hosts: where a model runs, how much memory there is, and what to do when there is too little."""

from .attention import choose_attention, pytorch_attention_enabled, xformers_enabled_vae
from .devices import get_torch_device, output_device, vae_device, vae_dtype, vae_offload_device
from .host import Host, LocalHost
from .loaded import free_memory, load_model, load_models_gpu, unload_all_models, unload_model
from .memory import get_free_memory, get_total_memory, soft_empty_cache
from .oom import OOM_EXCEPTION, is_oom

__all__ = [
    "OOM_EXCEPTION",
    "Host",
    "LocalHost",
    "choose_attention",
    "free_memory",
    "get_free_memory",
    "get_torch_device",
    "get_total_memory",
    "is_oom",
    "load_model",
    "load_models_gpu",
    "output_device",
    "pytorch_attention_enabled",
    "soft_empty_cache",
    "unload_all_models",
    "unload_model",
    "vae_device",
    "vae_dtype",
    "vae_offload_device",
    "xformers_enabled_vae",
]

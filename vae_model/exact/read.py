"""Reading single layers of a module tree. What is not understood is refused by name; nothing is guessed."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..group_norm import GroupNorm
from .layer import PADDING_MODES, Conv, Norm, Statistics, UnsupportedModule


def read_statistics(layer: Any, name: str, channels: int) -> Statistics:
    """A BatchNorm that always uses what it has stored, of so many channels."""
    if not isinstance(layer, nn.BatchNorm2d) or layer.affine or layer.running_var is None:
        raise UnsupportedModule(f"{name}: expected a BatchNorm of stored statistics, got {describe(layer)}")
    if layer.num_features != channels:
        raise UnsupportedModule(f"{name}: expected {channels} channels, got {layer.num_features}")
    _require_own_forward(layer, nn.BatchNorm2d, name)
    return Statistics(layer, channels, layer.eps)


def read_norm(layer: Any, name: str) -> Norm:
    """A GroupNorm with affine parameters."""
    if not isinstance(layer, nn.GroupNorm) or not layer.affine:
        raise UnsupportedModule(f"{name}: expected an affine GroupNorm, got {describe(layer)}")
    _require_own_forward(layer, GroupNorm if isinstance(layer, GroupNorm) else nn.GroupNorm, name)
    return Norm(layer, name, layer.num_channels, layer.num_groups, layer.eps)


def read_conv(
    layer: Any,
    name: str,
    *,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    extra_pad: int | None = None,
    groups: int = 1,
    plain: type[nn.Module] = nn.Conv2d,
) -> Conv:
    """A 2-D convolution of the wanted geometry; `extra_pad`: zeros that the owner adds below and on the right.

    `plain`: the class whose forward it must have.
    """
    if not isinstance(layer, nn.Conv2d):
        raise UnsupportedModule(f"{name}: expected a 2-D convolution, got {describe(layer)}")
    _require_own_forward(layer, plain, name)
    found = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    wanted = ((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), groups)
    if found != wanted:
        raise UnsupportedModule(
            f"{name}: expected {wanted} as kernel, stride, padding, dilation and groups, got {found}"
        )
    mode = layer.padding_mode if padding else "zeros"
    if mode not in PADDING_MODES:
        raise UnsupportedModule(f"{name}: expected padding of {', '.join(PADDING_MODES)}, got {mode}")
    return Conv(
        layer,
        name,
        layer.in_channels,
        layer.out_channels,
        kernel,
        stride,
        padding,
        padding if extra_pad is None else extra_pad,
        mode,
        groups=groups,
    )


def describe(layer: Any) -> str:
    """A layer in an error message: its class."""
    return type(layer).__name__


def _require_own_forward(layer: nn.Module, base: type[nn.Module], name: str) -> None:
    """Refuse subclasses that compute something else; a host's own casting layers say so by `comfy_cast_weights`."""
    if type(layer).forward is not base.forward and not hasattr(layer, "comfy_cast_weights"):
        raise UnsupportedModule(f"{name}: expected a plain {base.__name__}, got {describe(layer)}")


def require_plain(root: nn.Module) -> None:
    """Refuse a tree in which anything was hooked, wrapped or replaced: such additions would be passed over."""
    for name, layer in root.named_modules():
        where = name or describe(root)
        hooks = (layer._forward_hooks, layer._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        if any(hooks):
            raise UnsupportedModule(f"{where}: expected a layer without hooks, got some")
        if "forward" in vars(layer) or "_conv_forward" in vars(layer):
            raise UnsupportedModule(f"{where}: expected the layer's own forward, got a replaced one")
        if hasattr(layer, "parametrizations"):
            raise UnsupportedModule(f"{where}: expected plain weights, got parametrised ones")
        if isinstance(layer, nn.Dropout) and layer.training and layer.p > 0:
            raise UnsupportedModule(f"{where}: expected evaluation mode, got active dropout: call eval() first")


def require_children(layer: nn.Module, name: str, known: set[str]) -> None:
    """Refuse a composite layer with parts that the engine would not run."""
    unknown = sorted(child for child, _ in layer.named_children() if child not in known)
    if unknown:
        raise UnsupportedModule(f"{name}: expected {', '.join(sorted(known))}, got also {', '.join(unknown)}")

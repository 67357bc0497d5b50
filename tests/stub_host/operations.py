"""The imitated comfy.ops: layers whose weights may only be used through the host's casting, which counts its calls.

Newer versions hand out weights that are valid only until they are released. Here a release fills them with NaN, so that
code which keeps using them afterwards is found out.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .host import StubHost


class CastWeightBiasOp:
    """What the host's layers carry: whether they always cast, and functions that patch a weight on its way."""

    comfy_cast_weights = False
    weight_function: Any = ()
    bias_function: Any = ()
    stub_name = "?"


def make_ops(host: StubHost) -> ModuleType:
    """The module, with the layer classes under `disable_weight_init` and `manual_cast`."""
    module: Any = ModuleType("comfy.ops")

    def cast(layer: Any, like: Tensor | None, dtype: Any, device: Any, bias_dtype: Any) -> tuple[Tensor, Tensor | None]:
        host.fetched[layer.stub_name] += 1
        if like is not None:
            dtype, device = dtype or like.dtype, device or like.device
        lends = host.new and host.lends
        weight = layer.weight.to(device=device, dtype=dtype, copy=lends or bool(layer.weight_function))
        for change in layer.weight_function:
            weight = change(weight)
        bias = layer.bias
        if bias is not None:
            bias = bias.to(device=device, dtype=bias_dtype or dtype, copy=lends or bool(layer.bias_function))
            for change in layer.bias_function:
                bias = change(bias)
        return weight, bias

    def old_cast(s: Any, input: Any = None, dtype: Any = None, device: Any = None, bias_dtype: Any = None) -> Any:
        return cast(s, input, dtype, device, bias_dtype)

    def new_cast(
        s: Any,
        input: Any = None,
        dtype: Any = None,
        device: Any = None,
        bias_dtype: Any = None,
        offloadable: bool = False,
        compute_dtype: Any = None,
        want_requant: bool = False,
    ) -> Any:
        weight, bias = cast(s, input, dtype, device, bias_dtype)
        if not offloadable:
            return weight, bias
        if not host.lends:
            return weight, bias, (None, weight, bias)
        host.pinned[s.stub_name] += 1
        return weight, bias, ("a stream", weight, bias)

    def uncast(s: Any, weight: Any, bias: Any, offload_stream: Any) -> None:
        if offload_stream[0] is None:
            return
        host.pinned[s.stub_name] -= 1
        with torch.inference_mode():
            for tensor, stored in ((weight, s.weight), (bias, s.bias)):
                if tensor is not None and tensor is not stored:
                    tensor.fill_(torch.nan)

    class CastBiasWeightContext:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.layer = args[0]
            self.state = new_cast(*args, **options)

        def __enter__(self) -> Any:
            return self.state[:2]

        def __exit__(self, *_: object) -> None:
            if len(self.state) == 3:
                uncast(self.layer, *self.state)

    module.CastWeightBiasOp = CastWeightBiasOp
    module.cast_bias_weight = new_cast if host.new else old_cast
    module.run_every_op = lambda: None
    if host.new:
        module.uncast_bias_weight = uncast
        module.CastBiasWeightContext = CastBiasWeightContext
        module.run_every_op = lambda: host.modules["comfy.model_management"].throw_exception_if_processing_interrupted()
    module.disable_weight_init = _layers(module, False)
    module.manual_cast = _layers(module, True)
    return module


def _layers(module: Any, always_cast: bool) -> Any:
    """The layer classes, made for one host; those of `manual_cast` always cast."""

    def run(layer: Any, x: Tensor, plain: Any, with_weights: Any) -> Tensor:
        module.run_every_op()
        if layer.comfy_cast_weights or len(layer.weight_function) > 0 or len(layer.bias_function) > 0:
            weight, bias = module.cast_bias_weight(layer, x)
            return with_weights(weight, bias)
        return plain(x)

    class Conv2d(nn.Conv2d, CastWeightBiasOp):
        comfy_cast_weights = always_cast

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return run(self, x, super().forward, lambda weight, bias: self._conv_forward(x, weight, bias))

    class Conv3d(nn.Conv3d, CastWeightBiasOp):
        comfy_cast_weights = always_cast

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return run(self, x, super().forward, lambda weight, bias: self._conv_forward(x, weight, bias))

    class GroupNorm(nn.GroupNorm, CastWeightBiasOp):
        comfy_cast_weights = always_cast

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            def normalise(weight: Tensor, bias: Tensor) -> Tensor:
                return functional.group_norm(x, self.num_groups, weight, bias, self.eps)

            return run(self, x, super().forward, normalise)

    return type("layers", (), {"Conv2d": Conv2d, "Conv3d": Conv3d, "GroupNorm": GroupNorm})

"""Building blocks of the ldm image autoencoder. Attribute names equal the checkpoint's keys.

Source: the layer set of CompVis latent-diffusion `ldm/modules/diffusionmodules/model.py` (MIT), re-implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...attention.backends import AttentionFunction, chosen_attention, takes_images, to_tokens
from ...errors import InputError
from ...group_norm import GroupNorm
from ..arguments import require_choice, require_kinds, require_planes, require_sides


def nonlinearity(x: Tensor) -> Tensor:
    """SiLU, x * sigmoid(x), as a new tensor of x's shape and dtype."""
    return functional.silu(x)


def activate_fresh(x: Tensor) -> Tensor:
    """SiLU of a tensor nobody else holds: in place, unless autograd needs the input."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def Normalize(in_channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6 and affine parameters; `in_channels` must be a multiple of `num_groups`."""
    require_kinds("Normalize", locals())
    if in_channels % num_groups:
        raise InputError(
            f"norm: expected channels divisible by {num_groups} groups, got {in_channels}: change num_groups, which "
            "stands beside the channels, or these"
        )
    return GroupNorm(num_groups, in_channels, eps=1e-6, affine=True)


def nearest_x2(x: Tensor) -> Tensor:
    """Every pixel four times: (B, C, H, W) -> (B, C, 2H, 2W), dtype of x.

    Where the device has no kernel for the dtype (bfloat16 on old versions), by way of float32, some channels at a time.
    """
    try:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    except RuntimeError as error:  # out of memory is one too, and says other words
        if "not implemented for" not in str(error) or x.dtype == torch.float32:
            raise
    out = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    step = max(1, x.shape[1] // 8)
    for start in range(0, x.shape[1], step):
        wide = x[:, start : start + step].float()
        out[:, start : start + step] = functional.interpolate(wide, scale_factor=2.0, mode="nearest")
    return out


class Upsample(nn.Module):
    """Nearest x2 in both directions, then a 3x3 convolution when `with_conv`: (B, C, H, W) -> (B, C, 2H, 2W)."""

    decides = ("with_conv",)

    def __init__(self, in_channels: int, with_conv: bool = True) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        self.in_channels, self.with_conv = in_channels, with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        require_planes(x, self.in_channels, type(self).__name__)
        x = nearest_x2(x)
        return self.conv(x) if self.with_conv else x


class Downsample(nn.Module):
    """Halve both sides, rounding down: (B, C, H, W) -> (B, C, H // 2, W // 2).

    With a convolution: zeros are added on the right and the bottom only, then 3x3 with stride 2 (diffusers calls it
    `downsample_padding=0`). Without: 2x2 average pooling.
    """

    decides = ("with_conv",)

    def __init__(self, in_channels: int, with_conv: bool = True) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        self.in_channels, self.with_conv = in_channels, with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            require_planes(x, self.in_channels, type(self).__name__)
            require_sides(x, 2, type(self).__name__)
        if not self.with_conv:
            return functional.avg_pool2d(x, kernel_size=2, stride=2)
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """norm1, SiLU, conv1, (+ timestep), norm2, SiLU, dropout, conv2, plus the input or its shortcut convolution.

    The shortcut exists only where channels change: 3x3 `conv_shortcut` if asked for, else 1x1 `nin_shortcut`. The
    activation is `swish`; another module put there is used.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float = 0.0,
        temb_channels: int = 512,
        num_groups: int = 32,
    ) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels, self.out_channels = in_channels, out_channels
        self.use_conv_shortcut = conv_shortcut
        self.swish = nn.SiLU()
        self.norm1 = Normalize(in_channels, num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        if temb_channels > 0:
            self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = Normalize(out_channels, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
            else:
                self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """x: (B, in_channels, H, W); temb: (B, temb_channels) or None -> (B, out_channels, H, W)."""
        require_planes(x, self.in_channels, type(self).__name__)
        h = self.conv1(self._activate(self.norm1(x)))
        if temb is not None:
            if not hasattr(self, "temb_proj"):
                raise ValueError(
                    "ResnetBlock: expected temb=None (built with temb_channels=0), got an embedding: drop it"
                )
            width = self.temb_proj.in_features
            if temb.ndim != 2 or temb.shape[0] not in (1, len(x)) or temb.shape[1] != width:
                raise InputError(
                    f"ResnetBlock: expected temb ({len(x)}, {width}), got {tuple(temb.shape)}: give one per image"
                )
            h = h + self.temb_proj(self.swish(temb))[:, :, None, None]
        h = self.dropout(self._activate(self.norm2(h)))  # rebound before conv2, so that its source is freed
        h = self.conv2(h)
        if self.in_channels != self.out_channels:
            x = self.conv_shortcut(x) if self.use_conv_shortcut else self.nin_shortcut(x)
        return h.add_(x)  # no autograd formula needs the convolution's output

    def _activate(self, x: Tensor) -> Tensor:
        """`swish` of a tensor nobody else holds, in place where it may be."""
        return activate_fresh(x) if type(self.swish) is nn.SiLU else self.swish(x)


class AttnBlock(nn.Module):
    """x + proj_out(attention(norm(x))): one head over all positions, 1x1 convolutions q, k, v, proj_out.

    `attend` is the attention back end on tokens, exchanged per model by `set_attention`; by default the one that fits
    where the block runs. `optimized_attention` is the same on images (B, C, H, W), under the document's name.
    Keyword arguments of `forward` (timesteps and the like) are accepted and ignored.
    """

    attend: AttentionFunction

    def __init__(self, in_channels: int, *, num_groups: int = 32) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize(in_channels, num_groups)
        self.q = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.k = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.v = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.attend = chosen_attention

    @property
    def optimized_attention(self) -> AttentionFunction:
        """(q, k, v), each (B, C, H, W) -> (B, C, H, W). It may be set to another function of that kind."""
        return takes_images(self.attend)

    @optimized_attention.setter
    def optimized_attention(self, function: AttentionFunction) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            columns = (tokens.transpose(1, 2).unsqueeze(3) for tokens in (q, k, v))  # (B, C, N, 1)
            return to_tokens(function(*columns))

        self.attend = attend

    def forward(self, x: Tensor, **_ignored: object) -> Tensor:
        require_planes(x, self.norm.num_channels, type(self).__name__)
        h = self.attention(x).transpose(1, 2).reshape(x.shape)  # (B, C, H, W)
        return x + self.proj_out(h)

    def attention(self, x: Tensor) -> Tensor:
        """What is projected and added: (B, C, H, W) -> (B, H*W, C)."""
        h = self.norm(x)
        q, k, v = (to_tokens(convolution(h)) for convolution in (self.q, self.k, self.v))
        del h
        return self.attend(q, k, v)


class LinAttnBlock(nn.Module):
    """Linear attention with one head: no norm (`num_groups` is unused), no residual, softmax over the positions of k.

    Keys `to_qkv.weight`, `to_out.weight`, `to_out.bias`. Source: latent-diffusion `ldm/modules/attention.py` (MIT).
    """

    def __init__(self, in_channels: int, *, num_groups: int = 32) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        self.in_channels = in_channels
        self.to_qkv = nn.Conv2d(in_channels, 3 * in_channels, kernel_size=1, bias=False)
        self.to_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)

    def forward(self, x: Tensor, **_ignored: object) -> Tensor:
        require_planes(x, self.in_channels, type(self).__name__)
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)  # each (B, C, H*W)
        context = torch.softmax(k, dim=-1) @ v.transpose(1, 2)  # (B, C, C)
        return self.to_out((context.transpose(1, 2) @ q).reshape(x.shape))  # (B, C, H, W)


class NoAttention(nn.Identity):
    """Stands where attention is switched off; accepts and ignores what attention layers take."""

    def __init__(self, in_channels: int, *, num_groups: int = 32) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()

    def forward(self, input: Tensor, **_ignored: object) -> Tensor:
        return input


ATTENTION_TYPES: dict[str, Callable[..., nn.Module]] = {
    "vanilla": AttnBlock,
    "vanilla-xformers": AttnBlock,  # the same layer; the back end is chosen per call
    "linear": LinAttnBlock,
    "none": NoAttention,
}


def make_attn(in_channels: int, attn_type: str = "vanilla", attn_kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the attention layer of that type; ValueError for a type that is not in ATTENTION_TYPES.

    `attn_kwargs`: `num_groups`, which is all that these layers take.
    """
    require_choice("attn_type", attn_type, ATTENTION_TYPES)
    require_kinds("make_attn", locals())
    options = dict(attn_kwargs or {})
    for name in options.keys() - {"num_groups"}:
        raise InputError(f"make_attn: expected num_groups alone in attn_kwargs, got {name}: leave it out")
    return ATTENTION_TYPES[attn_type](in_channels, **options)


def set_attention(module: nn.Module, attend: AttentionFunction) -> None:
    """Make every attention layer inside `module` use `attend`: (q, k, v), each (B, N, C) -> (B, N, C)."""
    for layer in module.modules():
        if "attend" in vars(layer):
            vars(layer)["attend"] = attend

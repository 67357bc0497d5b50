"""The temporal decoder of Stable Video Diffusion: an image decoder with layers that mix the frames of a group.

A batch holds groups of `timesteps` frames, one group behind the other. Attribute names equal the checkpoint's keys.
Source: Stability-AI generative-models `sgm/modules/autoencoding/temporal_ae.py` (MIT), re-implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...group_norm import GroupNorm
from ..arguments import NUMBER, require_choice, require_kinds, require_planes
from ..ldm.coder import Decoder
from ..ldm.config import KLConfig
from ..ldm.layers import ATTENTION_TYPES, AttnBlock, ResnetBlock, activate_fresh
from .attention import TimeTransformer, frame_embedding

KernelSize = int | Sequence[int]
"""Of a convolution over (frames, rows, columns): one odd number, or three."""

TIME_MODES = {
    "all": ("resnet", "attention", "conv_out"),
    "conv-only": ("resnet", "conv_out"),
    "attn-only": ("attention",),
    "only-last-conv": ("conv_out",),
}
"""Which layers of the decoder mix frames. Stable Video Diffusion: conv-only."""


@dataclass(frozen=True)
class VideoConfig(KLConfig):
    """An ldm autoencoder whose decoder mixes the frames of a group: Stable Video Diffusion."""

    time_mode: str = "conv-only"
    """Which layers mix, a name in TIME_MODES."""
    video_kernel_size: tuple[int, int, int] = (3, 1, 1)
    """Of the convolutions over (frames, rows, columns)."""
    merge_strategy: str = "learned"
    """Whether the shares are learned or fixed; no tensor tells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder is None:
            raise ValueError("video autoencoder: expected a decoder, got none: load the encoder as an image model")

    def ddconfig(self, part: str) -> dict[str, Any] | None:
        """Keyword arguments of Encoder or VideoDecoder."""
        options = super().ddconfig(part)
        if options is None or part == "encoder":
            return options
        names = ("time_mode", "video_kernel_size", "merge_strategy")
        return options | {name: getattr(self, name) for name in names}


def to_frames(x: Tensor, timesteps: int | None) -> Tensor:
    """(B * T, C, ...) -> (B, C, T, ...), a view; without `timesteps` the whole batch is one group."""
    frames = len(x) if timesteps is None else timesteps
    if frames < 1 or len(x) % frames:
        raise ValueError(
            f"timesteps: expected a divisor of the batch of {len(x)} frames, got {timesteps}: pass whole groups"
        )
    return x.unflatten(0, (-1, frames)).transpose(1, 2)  # (B, C, T, ...)


def from_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)


def time_conv(channels: int, kernel_size: KernelSize) -> nn.Conv3d:
    """A convolution over (frames, rows, columns) that keeps all sizes."""
    sizes = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sizes) != 3 or any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"video_kernel_size: expected one odd number or three, got {kernel_size}: correct it")
    padding = (sizes[0] // 2, sizes[1] // 2, sizes[2] // 2)
    return nn.Conv3d(channels, channels, (sizes[0], sizes[1], sizes[2]), padding=padding)


class MixesFrames:
    """Of layers with a `mix_factor` (1,): a parameter where it is "learned", a buffer where it is "fixed"."""

    decides = ("merge_strategy",)

    mix_factor: Tensor
    merge_strategy: str

    def add_mix_factor(self: Any, alpha: float, merge_strategy: str) -> None:
        """Make it, with this value."""
        require_choice("merge_strategy", merge_strategy, ("learned", "fixed"))
        require_kinds(type(self).__name__, {"alpha": alpha}, {"alpha": NUMBER})
        self.merge_strategy = merge_strategy
        factor = torch.full((1,), float(alpha))
        if merge_strategy == "fixed":
            self.register_buffer("mix_factor", factor)
        else:
            self.register_parameter("mix_factor", nn.Parameter(factor))

    def mix_share(self, like: Tensor) -> Tensor:
        """alpha, of shape (1,): the fixed factor itself, of a learned one its sigmoid."""
        learned = self.merge_strategy == "learned"
        return (torch.sigmoid(self.mix_factor) if learned else self.mix_factor).to(like)


class TimeStack(nn.Module):
    """x + two convolutions over the frames, each behind GroupNorm over (T, H, W) with eps 1e-5 and SiLU.

    (B, C, T, H, W) -> the same. The second convolution starts at zero, so a fresh stack changes nothing.
    """

    def __init__(
        self, channels: int, *, video_kernel_size: KernelSize = 3, dropout: float = 0.0, num_groups: int = 32
    ) -> None:
        super().__init__()
        last = time_conv(channels, video_kernel_size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        norms = [GroupNorm(num_groups, channels, eps=1e-5) for _ in range(2)]
        self.in_layers = nn.Sequential(norms[0], nn.SiLU(), time_conv(channels, video_kernel_size))
        self.out_layers = nn.Sequential(norms[1], nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        h = self.in_layers[2](activate_fresh(self.in_layers[0](x)))
        h = self.out_layers[2](activate_fresh(self.out_layers[0](h)))  # rebound, so that its source is freed
        h = self.out_layers[3](h)
        return h.add_(x)  # no autograd formula needs the convolution's output


class VideoResBlock(MixesFrames, ResnetBlock):
    """A ResnetBlock of single frames, then alpha * time_stack(x) + (1 - alpha) * x.

    `video_kernel_size` None is [3, 1, 1]. `alpha`: the value of `mix_factor`, see `mix_share`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        num_groups: int = 32,
        video_kernel_size: KernelSize | None = 3,
        alpha: float = 0.0,
        merge_strategy: str = "learned",
        **block_options: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, dropout=dropout, num_groups=num_groups, **block_options
        )
        self.time_stack = TimeStack(
            self.out_channels,
            video_kernel_size=(3, 1, 1) if video_kernel_size is None else video_kernel_size,
            dropout=dropout,
            num_groups=num_groups,
        )
        self.add_mix_factor(alpha, merge_strategy)

    def forward(
        self, x: Tensor, temb: Tensor | None = None, skip_video: bool = False, timesteps: int | None = None
    ) -> Tensor:
        """x: (B * T, in_channels, H, W) -> (B * T, out_channels, H, W); `skip_video` leaves the frames unmixed."""
        x = super().forward(x, temb)
        if skip_video:
            return x
        x = to_frames(x, timesteps)
        return from_frames(torch.lerp(x, self.time_stack(x), self.mix_share(x)))


class AE3DConv(nn.Conv2d):
    """A 2-D convolution of single frames, then `time_mix_conv` over the frames."""

    def __init__(
        self, in_channels: int, out_channels: int, video_kernel_size: KernelSize = 3, **conv_options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, **conv_options)
        self.time_mix_conv = time_conv(out_channels, video_kernel_size)

    def forward(self, input: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        """(B * T, in_channels, H, W) -> (B * T, out_channels, H', W'); `skip_video` leaves the frames unmixed."""
        require_planes(input, self.in_channels, type(self).__name__)
        x = super().forward(input)
        return x if skip_video else from_frames(self.time_mix_conv(to_frames(x, timesteps)))


class AttnVideoBlock(MixesFrames, AttnBlock):
    """Attention inside each frame, mixed with a transformer over the frames of each position.

    x + proj_out(alpha * h + (1 - alpha) * time_mix_block(h + embedding of the frame's number)), h being the attention:
    the shares are the other way round than in VideoResBlock.
    """

    def __init__(
        self, in_channels: int, *, alpha: float = 0.0, merge_strategy: str = "learned", num_groups: int = 32
    ) -> None:
        super().__init__(in_channels, num_groups=num_groups)
        self.time_mix_block = TimeTransformer(in_channels)
        self.video_time_embed = nn.Sequential(
            nn.Linear(in_channels, 4 * in_channels), nn.SiLU(), nn.Linear(4 * in_channels, in_channels)
        )
        self.add_mix_factor(alpha, merge_strategy)

    def forward(self, x: Tensor, timesteps: int | None = None, skip_video: bool = False, **_ignored: object) -> Tensor:
        """x: (B * T, C, H, W) -> the same; `skip_video` leaves the frames unmixed."""
        if skip_video:
            return super().forward(x)
        require_planes(x, self.norm.num_channels, type(self).__name__)
        h = self.attention(x)  # (B * T, H*W, C)
        h = to_frames(h, timesteps).transpose(1, 2)  # (B, T, H*W, C)
        numbers = self.video_time_embed(frame_embedding(h.shape[1], self.in_channels).to(h))  # (T, C)
        tokens = (h + numbers[:, None]).transpose(1, 2)  # (B, H*W, T, C)
        mixed = self.time_mix_block(tokens.flatten(0, 1)).view(tokens.shape).transpose(1, 2)  # (B, T, H*W, C)
        h = torch.lerp(mixed, h, self.mix_share(h))
        h = h.flatten(0, 1).transpose(1, 2).reshape(x.shape)  # (B * T, C, H, W)
        return x + self.proj_out(h)


class VideoDecoder(Decoder):
    """A Decoder some of whose layers mix frames, as `time_mode` in TIME_MODES says.

    `forward(z, timesteps=None, skip_video=False)`: (B * T, z_channels, h, w) -> (B * T, out_ch, h * f, w * f); all
    layers get these two by name. `alpha` and `merge_strategy` are those of the blocks.
    """

    def __init__(
        self,
        *,
        video_kernel_size: KernelSize = 3,
        alpha: float = 0.0,
        merge_strategy: str = "learned",
        time_mode: str = "conv-only",
        attn_type: str = "vanilla",
        num_groups: int = 32,
        **decoder_options: Any,
    ) -> None:
        require_choice("time_mode", time_mode, TIME_MODES)
        require_choice("attn_type", attn_type, ATTENTION_TYPES)
        mixing, attends = TIME_MODES[time_mode], attn_type.startswith("vanilla")
        if "attention" in mixing and (not attends or decoder_options.get("use_linear_attn", False)):
            raise ValueError(f"attn_type: expected vanilla for time_mode {time_mode}, got {attn_type!r}: change one")
        blend = {"alpha": alpha, "merge_strategy": merge_strategy, "num_groups": num_groups}
        operations: dict[str, Any] = {}
        if "resnet" in mixing:
            shortcut = {"conv_shortcut": decoder_options.get("conv_shortcut", False)}
            operations["resnet_op"] = partial(VideoResBlock, video_kernel_size=video_kernel_size, **shortcut, **blend)
        if "attention" in mixing:
            operations["attn_op"] = partial(AttnVideoBlock, **blend)
        if "conv_out" in mixing:
            operations["conv_out_op"] = partial(AE3DConv, video_kernel_size=video_kernel_size)
        super().__init__(attn_type=attn_type, num_groups=num_groups, **operations, **decoder_options)
        self.video_kernel_size, self.alpha = video_kernel_size, alpha
        self.merge_strategy, self.time_mode = merge_strategy, time_mode

    def get_last_layer(self, skip_time_mix: bool = False) -> Tensor:
        """The weight of the last convolution: over the frames, unless that is skipped or there is none."""
        if skip_time_mix or not isinstance(self.conv_out, AE3DConv):
            return super().get_last_layer()
        return self.conv_out.time_mix_conv.weight

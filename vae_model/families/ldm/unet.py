"""`Model`, the UNet from which the autoencoder's halves descend: the DDPM network with skips and a timestep.

Source: CompVis latent-diffusion `ldm/modules/diffusionmodules/model.py` (MIT), re-implemented with the same keys.
"""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from ..arguments import require_kinds, require_planes
from .coder import Level, LevelNetwork, make_middle
from .layers import Normalize, ResnetBlock, activate_fresh, make_attn, nonlinearity

_LONGEST_PERIOD = 10000


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """Sinusoids of each timestep: all sines, then all cosines, then a zero where the width is odd.

    The frequencies fall geometrically from 1 to 1 / 10000; where there is only one (width 2 or 3), it is 1.

    Args:    timesteps: (N,), any dtype, whole numbers or not.
             embedding_dim: at least 1.
    Returns: (N, embedding_dim), float32.
    Raises:  InputError for anything else.
    """
    if not isinstance(timesteps, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = type(timesteps).__name__
        raise InputError(f"timesteps: expected a tensor (N,), got {found}: make one by torch.tensor")
    if timesteps.ndim != 1:
        raise InputError(f"timesteps: expected one dimension, got shape {tuple(timesteps.shape)}: give one per image")
    try:
        width = operator.index(embedding_dim)
    except TypeError:
        raise InputError(
            f"embedding_dim: expected a whole number of channels, got {embedding_dim!r}: give one, such as 128"
        ) from None
    if width < 1:
        raise InputError(f"embedding_dim: expected at least 1, got {width}: choose a larger width")
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(exponents * -(math.log(_LONGEST_PERIOD) / max(1, half - 1)))
    angles = timesteps.float()[:, None] * frequencies  # (N, half)
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    return functional.pad(embedding, (0, width % 2))


class TimestepMLP(nn.Module):
    """Two linear layers, `dense.0` and `dense.1`: a timestep (B,) -> its embedding (B, 4 * ch)."""

    def __init__(self, ch: int) -> None:
        super().__init__()
        self.ch = ch
        self.dense = nn.ModuleList([nn.Linear(ch, 4 * ch), nn.Linear(4 * ch, 4 * ch)])

    def forward(self, t: Tensor) -> Tensor:
        first, second = self.dense
        embedding = get_timestep_embedding(t, self.ch).to(cast(nn.Linear, first).weight.dtype)
        return second(nonlinearity(first(embedding)))


class Model(LevelNetwork):
    """UNet: (B, in_channels, H, W) -> (B, out_ch, H, W); H and W are multiples of 2 ** (len(ch_mult) - 1).

    Every block of the way up takes, beside what comes from below, one result of the way down. `in_channels` counts the
    channels of the context too. Attention follows each block of a level whose nominal size, `resolution` halved so far,
    is in `attn_resolutions`; `use_linear_attn` overrides `attn_type`.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: tuple[float, ...] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...] = (),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int = 256,
        use_timestep: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: int = 32,
    ) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        self.keep_arguments(locals())
        self.temb_ch, self.use_timestep = 4 * ch, use_timestep
        if use_timestep:
            self.temb = TimestepMLP(ch)
        make_block = partial(ResnetBlock, temb_channels=self.temb_ch, dropout=dropout, num_groups=num_groups)
        make_attention = partial(make_attn, attn_type=self.attn_type, attn_kwargs={"num_groups": num_groups})

        self.conv_in = nn.Conv2d(in_channels, ch, kernel_size=3, padding=1)
        skips = [ch]
        self.down, width = self.make_levels(ch, make_block, make_attention, skips=skips)
        self.mid = make_middle(width, make_block, make_attention)
        self.up, width = self.make_levels(width, make_block, make_attention, up=True, skips=skips)
        self.norm_out = Normalize(width, num_groups)
        self.conv_out = nn.Conv2d(width, out_ch, kernel_size=3, padding=1)

    def get_last_layer(self) -> Tensor:
        """The weight of the last convolution, (out_ch, width, 3, 3)."""
        return self.conv_out.weight

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W). t: (B,), needed when built with `use_timestep`, else unused. context: (B, C', H, W)."""
        x = _with_context(x, context)
        if x.ndim == 4:
            require_planes(x, x.shape[1], "Model")
        factor = 2 ** (self.num_resolutions - 1)
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise InputError(
                f"Model: expected {self.in_channels} channels, context included, and sides divisible by {factor}, "
                f"got {tuple(x.shape)}: correct the input"
            )
        temb = None
        if self.use_timestep:
            if t is None:
                raise InputError("Model: expected timesteps, got none: pass t or build with use_timestep=False")
            _require_one_each(t, x)
            temb = self.temb(t)
        kept = [self.conv_in(x)]
        for level in self.down:
            parts = cast(Level, level)
            for i in range(len(parts.block)):
                kept.append(_block(parts, i, kept[-1], temb))
            if hasattr(parts, "downsample"):
                kept.append(cast(nn.Module, parts.downsample)(kept[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(kept[-1], temb)), temb)
        for level in reversed(self.up):
            parts = cast(Level, level)
            for i in range(len(parts.block)):
                h = _block(parts, i, torch.cat([h, kept.pop()], dim=1), temb)
            if hasattr(parts, "upsample"):
                h = cast(nn.Module, parts.upsample)(h)
        return self.conv_out(activate_fresh(self.norm_out(h)))


def _with_context(x: Any, context: Any) -> Tensor:
    """Both as one, InputError for what is no tensor or does not lie on x."""
    for name, one in (("x", x), ("context", x if context is None else context)):
        if not isinstance(one, Tensor):
            raise InputError(f"Model: expected a tensor (B, C, H, W) as {name}, got {type(one).__name__}: pass one")
    if context is None:
        return x
    if x.ndim != 4 or context.ndim != 4 or x.shape[0] != context.shape[0] or x.shape[2:] != context.shape[2:]:
        raise InputError(
            f"Model: expected a context (B, C, H, W) with the batch and sides of x, got {tuple(context.shape)} for "
            f"{tuple(x.shape)}: enlarge or repeat it"
        )
    return torch.cat([x, context], dim=1)


def _require_one_each(t: Any, x: Tensor) -> None:
    """InputError for anything but one timestep of each image, or one of all; or their embeddings, without a `temb`."""
    if not isinstance(t, Tensor) or t.ndim == 0 or (t.shape[0] != 1 and t.shape[0] != x.shape[0]):
        found = tuple(t.shape) if isinstance(t, Tensor) else repr(t)
        raise InputError(f"Model: expected timesteps ({x.shape[0]},), one per image, got {found}: pass as many")


def _block(level: Level, i: int, h: Tensor, temb: Tensor | None) -> Tensor:
    """Block `i` of a level and the attention behind it, where there is one."""
    h = level.block[i](h, temb)
    return level.attn[i](h) if len(level.attn) > 0 else h

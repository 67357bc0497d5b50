"""Encoder and Decoder of the ldm image autoencoder (SD, SDXL, SD3, Flux, kl-f4 ... kl-f32).

Source: CompVis latent-diffusion and Stability-AI generative-models (MIT), re-implemented with the same keys.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...notes import tell
from ..arguments import require_groups, require_kinds, require_planes, require_sides, require_spelling
from .layers import Downsample, Normalize, ResnetBlock, Upsample, activate_fresh, make_attn

logger = logging.getLogger(__name__)


def _warn_unknown(owner: type[nn.Module], ignored: dict[str, Any], *of_the_other_half: str) -> None:
    """Name what configurations of others may hold; InputError for a misspelt option, which would be another network."""
    unknown = sorted(ignored.keys() - {*of_the_other_half})
    options = [
        one.name for one in inspect.signature(owner.__init__).parameters.values() if one.default is not one.empty
    ]
    require_spelling(owner.__name__, unknown, [*options, *of_the_other_half])
    if unknown:
        logger.warning("%s: ignoring unknown options %s", owner.__name__, ", ".join(unknown))


def _call_with_known(layer: nn.Module, h: Tensor, options: dict[str, Any]) -> Tensor:
    """Call a layer with those of `options` that its forward accepts."""
    if options:
        known = inspect.signature(layer.forward).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            options = {name: value for name, value in options.items() if name in known}
    return layer(h, **options)


class Level(nn.Module):
    """One resolution level: blocks, each followed by its attention where the level has any, then the resampling."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()

    def layers(self) -> Iterator[nn.Module]:
        """What runs, in order."""
        for i, block in enumerate(self.block):
            yield block
            if len(self.attn) > 0:
                yield self.attn[i]
        yield from (getattr(self, name) for name in ("downsample", "upsample") if hasattr(self, name))


class Middle(nn.Module):
    """The two blocks at the lowest resolution, with the attention over all positions between them."""

    def __init__(self, block_1: nn.Module, attn_1: nn.Module, block_2: nn.Module) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = block_1, attn_1, block_2

    def layers(self) -> Iterator[nn.Module]:
        """What runs, in order."""
        yield from (self.block_1, self.attn_1, self.block_2)


def make_middle(width: int, make_block: Callable[..., nn.Module], make_attention: Callable[[int], nn.Module]) -> Middle:
    """Of layers made as those of the levels are."""
    first = make_block(in_channels=width, out_channels=width)
    return Middle(first, make_attention(width), make_block(in_channels=width, out_channels=width))


def _run(parts: Iterable[nn.Module], h: Tensor, options: dict[str, Any]) -> Tensor:
    """Layer after layer of levels and middles, from one frame, so that no earlier activation is held by a caller."""
    for part in parts:
        for layer in cast(Level | Middle, part).layers():
            h = _call_with_known(layer, h, options)
    return h


class LevelNetwork(nn.Module):
    """What encoder, decoder and UNet share: the arguments that they keep, and how their levels are built from these."""

    def keep_arguments(self, given: Mapping[str, Any]) -> None:
        """What the network was built with, as attributes; reading alone, the layers are made."""
        self.ch, self.out_ch, self.in_channels = given["ch"], given["out_ch"], given["in_channels"]
        self.ch_mult, self.attn_resolutions = tuple(given["ch_mult"]), tuple(given["attn_resolutions"])
        self.num_resolutions, self.num_res_blocks = len(self.ch_mult), given["num_res_blocks"]
        self.resolution, self.resamp_with_conv = given["resolution"], given["resamp_with_conv"]
        self.dropout, self.temb_ch = given["dropout"], 0
        self.attn_type = "linear" if given["use_linear_attn"] else given["attn_type"]
        self.use_linear_attn = self.attn_type == "linear"

    def level_widths(self) -> list[int]:
        """Channels of each level, that of full resolution first."""
        return [round(self.ch * factor) for factor in self.ch_mult]

    def make_levels(
        self,
        width: int,
        make_block: Callable[..., nn.Module],
        make_attention: Callable[[int], nn.Module],
        *,
        up: bool = False,
        skips: list[int] | None = None,
    ) -> tuple[nn.ModuleList, int]:
        """The levels down from full resolution, or up to it, which have a block more each; and their last width.

        Args:    width: channels of what the first block gets.
                 make_block: called with in_channels and out_channels. make_attention: called with its channels.
                 skips: widths of what the way down hands over, which are added there, and the way up takes beside its
                 own, the last first.
        """
        widths, levels, skips = self.level_widths(), nn.ModuleList(), [] if skips is None else skips
        size = self.resolution // 2 ** (self.num_resolutions - 1) if up else self.resolution
        sizes = list[float]()
        for i in reversed(range(len(widths))) if up else range(len(widths)):
            level = Level()
            sizes.append(size)
            for _ in range(self.num_res_blocks + up):
                beside = skips.pop() if up and skips else 0
                level.block.append(make_block(in_channels=width + beside, out_channels=widths[i]))
                width = widths[i]
                if size in self.attn_resolutions:
                    level.attn.append(make_attention(width))
                if not up:
                    skips.append(width)
            if up and i != 0:
                level.upsample = Upsample(width, self.resamp_with_conv)
                size *= 2  # a nominal size that was odd on the way down is another one here, as in the source
            elif not up and i != len(widths) - 1:
                level.downsample = Downsample(width, self.resamp_with_conv)
                size //= 2
                skips.append(width)
            levels.insert(0 if up else i, level)
        nowhere = [side for side in self.attn_resolutions if side not in sizes]
        if nowhere:  # published configurations have such lines
            why = f"with resolution {self.resolution} the levels have {sizes}"
            tell(type(self).__name__, [f"attn_resolutions {nowhere} add no attention: {why}"])
        return levels, width


class Encoder(LevelNetwork):
    """Image to latent moments: (B, in_channels, H, W) -> (B, (1 + double_z) * z_channels, H // f, W // f).

    f = 2 ** (len(ch_mult) - 1); odd sizes round down at every level. Attention follows each block of a level whose
    nominal size, `resolution` halved so far, is in `attn_resolutions` (the configured size, not the image's).
    `conv_shortcut`: 3x3 shortcuts where a block changes its width. `out_ch` is accepted for old configurations and
    unused. Unknown options are named in a warning.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int = 3,
        ch_mult: tuple[float, ...] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...] = (),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int = 256,
        z_channels: int,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: int = 32,
        conv_shortcut: bool = False,
        **ignore_kwargs: Any,
    ) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        _warn_unknown(Encoder, ignore_kwargs, "tanh_out", "give_pre_end")
        self.keep_arguments(locals())
        self.z_channels, self.double_z = z_channels, double_z
        require_groups("Encoder", ch, self.level_widths(), num_groups)
        options = {"conv_shortcut": conv_shortcut, "temb_channels": 0, "dropout": dropout, "num_groups": num_groups}
        make_block = partial(ResnetBlock, **options)
        make_attention = partial(make_attn, attn_type=self.attn_type, attn_kwargs={"num_groups": num_groups})

        self.conv_in = nn.Conv2d(in_channels, ch, kernel_size=3, padding=1)
        self.down, width = self.make_levels(ch, make_block, make_attention)
        self.mid = make_middle(width, make_block, make_attention)
        self.norm_out = Normalize(width, num_groups)
        self.conv_out = nn.Conv2d(width, (2 if double_z else 1) * z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W) in -1..1. No earlier activation is kept while later ones are computed."""
        require_planes(x, getattr(self.conv_in, "in_channels", self.in_channels), type(self).__name__, self.conv_in)
        require_sides(x, 2 ** sum(hasattr(level, "downsample") for level in self.down), type(self).__name__)
        h = _run([*self.down, self.mid], self.conv_in(x), {})
        return self.conv_out(activate_fresh(self.norm_out(h)))


class Decoder(LevelNetwork):
    """Latent to image: (B, z_channels, h, w) -> (B, out_ch, h * f, w * f), raw values of about -1..1, not clamped.

    `up[0]` is the level of full resolution; each level has num_res_blocks + 1 blocks, every level but 0 an upsample.
    `give_pre_end` returns what norm_out would get; `tanh_out` applies tanh at the end. The operations are called as
    conv_out_op(width, out_ch, kernel_size=3, stride=1, padding=1), resnet_op(in_channels=, out_channels=,
    temb_channels=0, dropout=) and attn_op(width); without them `conv_shortcut` (3x3 shortcuts) and `attn_type` decide.
    """

    decides = ("tanh_out", "give_pre_end")

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
        in_channels: int = 3,
        resolution: int = 256,
        z_channels: int,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: int = 32,
        conv_out_op: Callable[..., nn.Module] = nn.Conv2d,
        resnet_op: Callable[..., nn.Module] | None = None,
        attn_op: Callable[[int], nn.Module] | None = None,
        conv_shortcut: bool = False,
        **ignorekwargs: Any,
    ) -> None:
        require_kinds(type(self).__name__, locals())
        super().__init__()
        _warn_unknown(Decoder, ignorekwargs, "double_z")
        self.keep_arguments(locals())
        self.z_channels, self.give_pre_end, self.tanh_out = z_channels, give_pre_end, tanh_out
        widths = self.level_widths()
        require_groups(type(self).__name__, widths[0], widths if resnet_op is None else (), num_groups)
        make_block = resnet_op or partial(ResnetBlock, conv_shortcut=conv_shortcut, num_groups=num_groups)
        make_block = partial(make_block, temb_channels=0, dropout=dropout)
        own_attention = partial(make_attn, attn_type=self.attn_type, attn_kwargs={"num_groups": num_groups})
        make_attention = attn_op or own_attention

        width, size = widths[-1], resolution // 2 ** (self.num_resolutions - 1)
        self.z_shape = (1, z_channels, size, size)
        self.conv_in = nn.Conv2d(z_channels, width, kernel_size=3, padding=1)
        self.mid = make_middle(width, make_block, make_attention)
        self.up, width = self.make_levels(width, make_block, make_attention, up=True)
        self.norm_out = Normalize(width, num_groups)
        self.conv_out = conv_out_op(width, out_ch, kernel_size=3, stride=1, padding=1)

    def get_last_layer(self) -> Tensor:
        """The weight of the last convolution, (out_ch, width, 3, 3)."""
        weight = self.conv_out.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Keyword arguments reach every block, attention and conv_out that accepts them by name."""
        require_planes(z, getattr(self.conv_in, "in_channels", self.z_channels), type(self).__name__, self.conv_in)
        require_sides(z, 1, type(self).__name__)
        self.last_z_shape = z.shape
        h = _run([self.mid, *reversed(self.up)], self.conv_in(z), kwargs)
        if self.give_pre_end:
            return h
        h = _call_with_known(self.conv_out, activate_fresh(self.norm_out(h)), kwargs)
        return torch.tanh(h) if self.tanh_out else h

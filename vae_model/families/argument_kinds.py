"""What kinds of values the constructors of networks take, by the arguments' names: one table for all of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn

from ..errors import InputError

Kind = tuple[str, Callable[[Any], bool]]
"""(how an error calls it, whether a value is one)."""


def _whole(value: Any, least: int) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return operator.index(value) >= least
    except TypeError:
        return False


def _number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    known: Any = value
    return -math.inf < known < math.inf


def _flag(value: Any) -> bool:
    """None is False; numpy's own are taken, text is not, "false" would be true."""
    return value is None or isinstance(value, int) or type(value).__name__ in ("bool", "bool_")


def _sequence(value: Any, fits: Callable[[Any], bool]) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        return False
    items: Collection[Any] = value
    return all(fits(item) for item in items)


COUNT: Kind = ("a whole number of at least 1", lambda value: _whole(value, 1))
COUNT_OR_NONE: Kind = ("a whole number of at least 1 or None", lambda value: value is None or _whole(value, 1))
BLOCKS: Kind = ("a whole number of at least 0", lambda value: _whole(value, 0))
NUMBER: Kind = ("a finite number", _number)
SHARE: Kind = ("a number of 0..1", lambda value: _number(value) and 0 <= value <= 1)
SIZE: Kind = ("a number of pixels", lambda value: _number(value) and value > 0)
SIZES: Kind = ("a sequence of numbers", lambda value: _sequence(value, _number))
FACTORS: Kind = (
    "a sequence of positive numbers",
    lambda value: _sequence(value, lambda one: _number(one) and one > 0) and len(value) > 0,
)
COUNTS: Kind = (
    "a sequence of whole numbers of at least 1",
    lambda value: _sequence(value, lambda one: _whole(one, 1)) and len(value) > 0,
)
COUNTS_OR_NONE: Kind = (f"{COUNTS[0]} or None", lambda value: value is None or COUNTS[1](value))
BLOCK_COUNTS: Kind = (
    "a sequence of whole numbers of at least 0",
    lambda value: _sequence(value, lambda one: _whole(one, 0)) and len(value) > 0,
)
FLAG: Kind = ("True or False", _flag)
FUNCTION: Kind = ("a function or None", lambda value: value is None or callable(value))
MODULE: Kind = ("a torch.nn.Module", lambda value: isinstance(value, nn.Module))

NETWORK: Mapping[str, Kind] = {
    **dict.fromkeys(("ch", "out_ch", "in_channels", "z_channels", "num_groups", "embed_dim"), COUNT),
    **dict.fromkeys(("resamp_with_conv", "double_z", "use_linear_attn", "conv_shortcut", "use_timestep"), FLAG),
    **dict.fromkeys(("give_pre_end", "tanh_out", "sample_posterior", "use_quant_conv", "use_post_quant_conv"), FLAG),
    **dict.fromkeys(("conv_out_op", "resnet_op", "attn_op"), FUNCTION),
    "num_res_blocks": BLOCKS,
    "ch_mult": FACTORS,
    "attn_resolutions": SIZES,
    "resolution": SIZE,
    "dropout": SHARE,
    "max_batch_size": COUNT_OR_NONE,
}
"""Of encoders, decoders, the UNet and the engines made of them."""
AVERAGE: Mapping[str, Kind] = {"model": MODULE, "decay": NUMBER, "use_num_upates": FLAG}
"""Of a moving average."""
TINY: Mapping[str, Kind] = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "upsampling_scaling_factor"), COUNT),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), COUNTS_OR_NONE),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), BLOCK_COUNTS),
    **dict.fromkeys(("latent_magnitude", "latent_shift", "scaling_factor", "shift_factor"), NUMBER),
    **dict.fromkeys(("force_upcast", "midblock_gn", "strided_stem"), FLAG),
}
"""Of the tiny autoencoder."""


def require_kinds(owner: str, arguments: Mapping[str, Any], table: Mapping[str, Kind] = NETWORK) -> None:
    """InputError naming every argument that `table` has and whose value is of another kind."""
    wrong = [(name, kind[0]) for name, kind in table.items() if name in arguments and not kind[1](arguments[name])]
    if wrong:
        told = "; ".join(f"{name}: expected {kind}, got {_shown(arguments[name])}" for name, kind in wrong)
        raise InputError(f"{owner}: {told}: correct {'it' if len(wrong) == 1 else 'them'}")


def _shown(value: Any) -> str:
    if isinstance(value, (Tensor, nn.Module)):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else type(value).__name__

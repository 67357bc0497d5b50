"""What networks are given, checked where people call them: arguments of constructors, by one table of kinds for all
networks, and the axes and channels of inputs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..errors.listed import misspelt
from ..notes import warn

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
    """Numpy's own are taken; text is not, "false" would be true; nor is None, as what a YAML file leaves empty."""
    return (isinstance(value, int) and value in (0, 1)) or type(value).__name__ in ("bool", "bool_")


def _sequence(value: Any, fits: Callable[[Any], bool]) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        return False
    items: Collection[Any] = value
    return all(fits(item) for item in items)


COUNT: Kind = ("a whole number of at least 1", lambda value: _whole(value, 1))
COUNT_OR_NONE: Kind = ("a whole number of at least 1 or None", lambda value: value is None or _whole(value, 1))
BLOCKS: Kind = ("a whole number of at least 0", lambda value: _whole(value, 0))
NUMBER: Kind = ("a finite number", _number)
NOT_ZERO: Kind = ("a finite number that is not 0", lambda value: _number(value) and bool(value != 0))
RATE: Kind = ("a finite number of at least 0", lambda value: _number(value) and bool(value >= 0))
SHARE: Kind = ("a number of 0..1", lambda value: _number(value) and 0 <= value <= 1)
TEXT: Kind = ("text", lambda value: isinstance(value, str))
TEXT_OR_NONE: Kind = ("text or None", lambda value: value is None or isinstance(value, str))
SIZE: Kind = ("a number of pixels", lambda value: _number(value) and value > 0)
SIZES: Kind = ("a sequence of numbers", lambda value: _sequence(value, _number))


def _some(kind: str, fits: Callable[[Any], bool]) -> Kind:
    """A sequence that is not empty."""
    return f"a sequence of {kind}", lambda value: _sequence(value, fits) and len(value) > 0


FACTORS = _some("positive numbers", SIZE[1])
COUNTS = _some("whole numbers of at least 1", COUNT[1])
COUNTS_OR_NONE: Kind = (f"{COUNTS[0]} or None", lambda value: value is None or COUNTS[1](value))
BLOCK_COUNTS = _some("whole numbers of at least 0", BLOCKS[1])
FLAG: Kind = ("True or False", _flag)
FUNCTION: Kind = ("a function or None", lambda value: value is None or callable(value))
MODULE: Kind = ("a torch.nn.Module", lambda value: isinstance(value, nn.Module))
MAPPING: Kind = ("names with values", lambda value: isinstance(value, Mapping))
MAPPING_OR_NONE: Kind = ("names with values or None", lambda value: value is None or isinstance(value, Mapping))
TENSOR: Kind = ("a tensor of floats", lambda value: isinstance(value, Tensor) and value.is_floating_point())
GENERATOR: Kind = ("a torch.Generator or None", lambda value: value is None or isinstance(value, torch.Generator))
PARTS: Kind = (
    "encoder, decoder or both",
    lambda value: _sequence(value, lambda part: part in ("encoder", "decoder")) and len(value) > 0,
)

NETWORK: Mapping[str, Kind] = {
    **dict.fromkeys(("ch", "out_ch", "in_channels", "z_channels", "num_groups", "embed_dim"), COUNT),
    **dict.fromkeys(("resamp_with_conv", "double_z", "use_linear_attn", "conv_shortcut", "use_timestep"), FLAG),
    **dict.fromkeys(("give_pre_end", "tanh_out", "sample_posterior", "use_quant_conv", "use_post_quant_conv"), FLAG),
    **dict.fromkeys(("with_conv", "sample", "deterministic"), FLAG),
    **dict.fromkeys(("conv_out_op", "resnet_op", "attn_op"), FUNCTION),
    "num_res_blocks": BLOCKS,
    "ch_mult": FACTORS,
    "attn_resolutions": SIZES,
    "resolution": SIZE,
    "dropout": SHARE,
    **dict.fromkeys(("max_batch_size", "out_channels"), COUNT_OR_NONE),
    "temb_channels": BLOCKS,
    "attn_kwargs": MAPPING_OR_NONE,
    "parts": PARTS,
    "monitor": TEXT_OR_NONE,
    "input_key": TEXT,
}
"""Of encoders, decoders, the UNet, the engines made of them, and the layers that these are made of."""
CALLS: Mapping[str, Kind] = {"generator": GENERATOR, "sample": TENSOR, "x": TENSOR, "lr": RATE, "cfg": MAPPING}
"""Of what is called beside a network's own forward."""
LOSS: Mapping[str, Kind] = {
    **dict.fromkeys(("kl_weight", "disc_weight", "disc_factor"), RATE),
    **dict.fromkeys(("disc_width", "in_channels"), COUNT),
    **dict.fromkeys(("disc_start", "disc_layers"), BLOCKS),
    "logvar_init": NUMBER,
    "learn_logvar": FLAG,
}
"""Of the losses of a training."""
AVERAGE: Mapping[str, Kind] = {"model": MODULE, "decay": NUMBER, "use_num_upates": FLAG}
"""Of a moving average."""
TINY: Mapping[str, Kind] = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "upsampling_scaling_factor"), COUNT),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), COUNTS_OR_NONE),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), BLOCK_COUNTS),
    **dict.fromkeys(("latent_magnitude", "scaling_factor"), NOT_ZERO),
    **dict.fromkeys(("latent_shift", "shift_factor"), NUMBER),
    **dict.fromkeys(("force_upcast", "midblock_gn", "strided_stem", "use_tiling"), FLAG),
    **dict.fromkeys(("tile_sample_min_size", "tile_latent_min_size"), COUNT),
    "tile_overlap_factor": SHARE,
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


def require_spelling(owner: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """InputError for names that nobody reads and that resemble one of `known`: what they say would be passed over."""
    alike = misspelt(unknown, known)
    if alike:
        told = ", ".join(name for name, _ in alike)
        raise InputError(
            f"{owner}: expected names that it knows, got {told}: {', '.join(dict(alike).values())} "
            f"{'is' if len(alike) == 1 else 'are'} probably meant"
        )


def require_choice(name: str, value: Any, table: Iterable[str]) -> None:
    """InputError for what is none of the names in `table`, with all of them."""
    known = [*table]
    if not (isinstance(value, str) and value in known):
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}: choose one of these")


def require_planes(x: Any, channels: int, owner: str, first: nn.Module | None = None) -> None:
    """InputError for anything but a tensor (B, channels, H, W) of floats. Nothing is computed; traces do not see it.

    `first`: the layer that x goes into, whose weights must be of its dtype.
    """
    if not isinstance(x, Tensor):
        found = "nothing" if x is None else type(x).__name__
        raise InputError(f"{owner}: expected a tensor (B, {channels}, H, W), got {found}: pass one")
    if not x.is_floating_point():
        raise InputError(f"{owner}: expected floats (B, {channels}, H, W), got {x.dtype}: {_way_to_floats(x, owner)}")
    if first is not None:
        _require_dtype_of(first, x, owner)
    if _is_tracing() or (x.ndim == 4 and x.shape[1] == channels):
        return
    way = "use the network that belongs to it"
    if x.ndim == 4 and x.shape[-1] == channels != x.shape[-2]:  # where both are, these are more likely the sides
        way = "put the channels second, by movedim(-1, 1)"
    elif x.ndim == 3 and x.shape[0] == channels:
        way = "add a batch axis, by x[None]"
    raise InputError(f"{owner}: expected (B, {channels}, H, W), got {tuple(x.shape)}: {way}")


def _way_to_floats(x: Tensor, owner: str) -> str:
    """Bytes are an image's where one is encoded; of latents there are none, and layers between have neither."""
    if "decode" in owner.lower():
        return "pass what encode returned; whole numbers are no latents"
    return "bytes of an image become such by x / 127.5 - 1" if x.dtype == torch.uint8 else "convert it by x.float()"


def _require_dtype_of(layer: nn.Module, x: Tensor, owner: str) -> None:
    """InputError where `layer`, a plain convolution that nobody casts, holds weights of another dtype than x."""
    kind = type(layer)  # those of ComfyUI cast their weights, and parametrized ones make them
    plain = kind in (nn.Conv2d, nn.Conv3d) or kind.__name__ == "CausalConv3d"
    weight: Any = layer.weight if plain else None
    if type(weight) is not nn.Parameter or weight.dtype == x.dtype or not weight.is_floating_point():
        return
    if "forward" in vars(layer) or layer._forward_pre_hooks or torch.is_autocast_enabled(x.device.type):  # pyright: ignore[reportPrivateUsage]
        return
    raise InputError(
        f"{owner}: expected {weight.dtype} as its weights, got {x.dtype}: pass x.to({weight.dtype}), or convert the "
        "model by its to()"
    )


def require_sides(x: Tensor, least: int, owner: str) -> None:
    """InputError for planes (B, C, H, W) lower or narrower than `least`. Traces, exports and compilers do not see it:
    their sides are of any size, and a look at them would make a condition of the program."""
    if torch.compiler.is_compiling() or not all(type(side) is int for side in x.shape[2:]):
        return
    height, width = x.shape[2:]
    if min(height, width) < least:
        way = "pass latents of at least one cell" if "decode" in owner.lower() else "enlarge the image"
        raise InputError(f"{owner}: expected sides of at least {least}, got {width} x {height}: {way}")


def note_on_range(images: Tensor, told: set[str]) -> None:
    """Say, once for each `told`, that images for which -1..1 is meant have nothing darker than its middle, as those of
    0..1 have; such pictures exist. The caller has seen that they do not go beyond 1."""
    if "dark" not in told and images.numel() and images.device.type != "meta" and float(images.detach().min()) >= 0:
        told.add("dark")
        low, high = (float(value) for value in images.detach().aminmax())
        warn("images", f"expected values in -1..1, got {low:.3g} to {high:.3g}: if 0 is black in them, pass x * 2 - 1")


def require_moments(parameters: Any) -> None:
    """InputError for anything but moments (B, 2C, ...)."""
    if not isinstance(parameters, Tensor) or parameters.ndim < 2 or not parameters.is_floating_point():
        found: Any = type(parameters).__name__
        if isinstance(parameters, Tensor):
            found = tuple(parameters.shape) if parameters.is_floating_point() else parameters.dtype
        raise InputError(f"posterior: expected moments (B, 2C, ...), got {found}: pass what the encoder returns")
    if not _is_tracing() and parameters.shape[1] % 2:
        raise InputError(
            f"posterior: expected moments (B, 2C, ...), mean and log-variance, got {parameters.shape[1]} channels: "
            "build the encoder with double_z=True"
        )


def _is_tracing() -> bool:
    """A trace takes sizes for tensors, which are not to be compared."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def require_groups(owner: str, ch: int, widths: Iterable[int], num_groups: int) -> None:
    """InputError for widths that the norms' groups do not divide."""
    all_widths = [ch, *widths]
    if num_groups < 1 or any(width < 1 or width % num_groups for width in all_widths):
        listed = ", ".join(map(str, dict.fromkeys(all_widths)))
        fits = math.gcd(*all_widths, 32) if min(all_widths) > 0 else 1
        raise InputError(
            f"{owner}: expected ch and ch * ch_mult to be multiples of {num_groups}, the groups of its norms, got "
            f"{listed}: take such a ch, or say num_groups={fits} beside it"
        )


def half_of(model: Any, name: str) -> Any:
    """The encoder or the decoder of an autoencoder; RuntimeError for half a model that lacks it."""
    if not hasattr(model, name):
        raise RuntimeError(f"autoencoder: expected a model with {name}, got half a model: load the other file too")
    return getattr(model, name)

"""The model of a training: its architecture from arguments or from a file, its first weights, which half is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..bundled import BUNDLED_FILE
from ..checkpoint.difference import differences
from ..checkpoint.load import LoadedModel, load_model
from ..errors.listed import some
from ..families.ldm.autoencoder import AutoencoderKL, engine_options
from ..families.ldm.config import KLConfig
from ..families.ldm.layers import AttnBlock, ResnetBlock
from ..families.table import family_of
from ..notes import tell
from .arguments import call_checked
from .config import ConfigError, encoder_arguments, one_of
from .perceptual import OPPONENT

PARTS = ("encoder", "decoder")
START_LOGVAR = -6.0
_DOOR = "by num_groups and the others in model.params.ddconfig, or "
_ENDS = {"tanh_out", "give_pre_end"}


def check_parts(train: Sequence[str]) -> list[str]:
    """The problems of a list of halves to train."""
    if not train:
        return ["model.train: expected encoder, decoder or both, got nothing: name one"]
    return [problem for part in train for problem in one_of("model.train", part, PARTS)]


def load_start(path: str, variant: str | None = None, part: str | None = None, *, told: bool = False) -> LoadedModel:
    """The weights to start from; only image autoencoders of the KL family have what is trained here.

    `told`: whether a ddconfig says what no shape tells.
    """
    source = BUNDLED_FILE if path == "bundled" else path
    loaded = load_model(source, dtype=torch.float32, variant=variant, part=part, door=None if told else _DOOR)
    if not isinstance(loaded.model, AutoencoderKL) or type(loaded.config) is not KLConfig or loaded.family != "kl":
        raise ConfigError(
            f"model.ckpt_path: expected a KL image autoencoder, got {loaded.family} in {path}: use another"
        )
    return loaded


def model_options(
    ddconfig: Mapping[str, Any] | None,
    decoder_ddconfig: Mapping[str, Any] | None,
    embed_dim: int | None,
    quant: Mapping[str, bool | None],
    loaded: LoadedModel | None,
) -> dict[str, Any]:
    """The arguments of the model: its architecture from ddconfig, else from the file."""
    if ddconfig is None and loaded is None:
        raise ConfigError("model.params: expected ddconfig or ckpt_path, got neither: add one")
    given = {name: value for name, value in quant.items() if value is not None}
    options = {} if loaded is None else engine_options(cast(KLConfig, loaded.config))
    if ddconfig is None:
        parts = options.pop("parts")
        if parts != PARTS:
            raise ConfigError(f"model.ckpt_path: expected encoder and decoder, got {parts}: use a whole file")
        if decoder_ddconfig is not None:
            raise ConfigError("model.params.decoder_ddconfig: expected ddconfig beside it, got none: add ddconfig")
        if embed_dim not in (None, options["embed_dim"]):
            raise ConfigError(
                f"model.params.embed_dim: expected that of ckpt_path, {options['embed_dim']}, got {embed_dim}: "
                "leave it out, or say ddconfig for another architecture"
            )
        options.pop("decoder_target")
        return options | given
    encoder = _checked_ddconfig(ddconfig, "ddconfig")
    decoder = None if decoder_ddconfig is None else _checked_ddconfig(decoder_ddconfig, "decoder_ddconfig")
    if encoder.keys() & _ENDS:  # which encoders do not have
        decoder = decoder or dict(encoder)
        encoder = {name: value for name, value in encoder.items() if name not in _ENDS}
    quant = {name: bool(options.get(name, True)) for name in quant} | given
    if embed_dim is None and any(quant.values()):
        raise ConfigError("model.params: expected embed_dim beside ddconfig, got none: add it")
    embed_dim = int(encoder["z_channels"]) if embed_dim is None else embed_dim
    return {"embed_dim": embed_dim, "ddconfig": encoder, "decoder_ddconfig": decoder, **quant}


def _checked_ddconfig(ddconfig: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Names, types and the one value that training needs."""
    if not isinstance(ddconfig, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{where}: expected keys with values, got {ddconfig!r}: write ch, ch_mult and the others")
    if not ddconfig.get("double_z", True):
        raise ConfigError(f"{where}.double_z: expected true, got false: a KL autoencoder has means and variances")
    if ddconfig.get("give_pre_end"):
        raise ConfigError(f"{where}.give_pre_end: expected false, got true: there would be no images to compare")
    values = call_checked(encoder_arguments, ddconfig, where)
    return {name: values[name] for name in ddconfig}


def take_weights(model: AutoencoderKL, loaded: LoadedModel, ignore_keys: Sequence[str], name: str) -> None:
    """Copy the weights, all but the ignored ones; ConfigError naming what does not fit."""
    ignored, ours = tuple(ignore_keys), model.state_dict()
    given = {key: value for key, value in loaded.model.state_dict().items() if not key.startswith(ignored)}
    problems = [f"{key} missing" for key in sorted(ours.keys() - given.keys()) if not key.startswith(ignored)]
    problems += [f"{key} unknown" for key in sorted(given.keys() - ours.keys())]
    problems += [
        f"{key} {tuple(given[key].shape)} instead of {tuple(ours[key].shape)}"
        for key in sorted(ours.keys() & given.keys())
        if given[key].shape != ours[key].shape
    ]
    if problems:
        found = some(problems, between="; ")
        raise ConfigError(f"model.ckpt_path: expected weights that fit ddconfig, got {name} with {found}: use another")
    _check_settings(model, loaded, ignored, name)
    model.load_state_dict(ours | given)


def _check_settings(model: AutoencoderKL, loaded: LoadedModel, ignored: tuple[str, ...], name: str) -> None:
    """ConfigError where a file says otherwise than ddconfig what no shape tells; where it says nothing, a note.

    Dropout is the training's to choose.
    """
    texts = {text: f"{text.partition(' ')[0]}." for text in differences(loaded.model, model)}  # -> the layer's name
    found = [text for text, layer in texts.items() if not layer.startswith(ignored) and not layer.endswith(".dropout.")]
    if not found:
        return
    theirs, ours = (family_of(one).settings(one) for one in (loaded.model, model))
    odd = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key) and key != "dropout"]
    values = [f"{key} {theirs.get(key, 'False')} instead of {ours.get(key, 'False')}" for key in odd]
    listed = "; ".join(values or found[:3])
    # A file that tells its groups is one of ours or diffusers', where what is not said is known to be False.
    told = {key.removeprefix("encoder_").removeprefix("decoder_") for key in loaded.hints}
    if "norm_num_groups" in told or told & {*odd}:
        raise ConfigError(
            f"model.ckpt_path: expected settings as in ddconfig, got {name} with {listed}: set them in ddconfig, or "
            "leave ddconfig out"
        )
    tell(name, [f"it does not say its settings: usual are {listed}; those of ddconfig are taken"])


def freeze_all_but(model: AutoencoderKL, train: Sequence[str]) -> None:
    owners = {"quant_conv": "encoder", "post_quant_conv": "decoder"}
    for name, part in model.named_children():
        part.requires_grad_(owners.get(name, name) in train)


def _skip(model: AutoencoderKL) -> None:
    """Values that let a short training get somewhere.

    Residual branches start at zero, so that the network starts as its skip connections; the posterior starts nearly
    noiseless, or weak signals (colour, fine detail) drown in it; conv_in starts four times as sensitive to colour
    differences as to brightness, because photographs hold about that much less of them.
    """
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, ResnetBlock):
                layer.conv2.weight.zero_()
            elif isinstance(layer, AttnBlock):
                layer.proj_out.weight.zero_()
        last: Any = model.quant_conv if hasattr(model, "quant_conv") else model.encoder.conv_out
        channels = last.out_channels // 2
        last.weight[channels:].zero_()
        last.bias[channels:] = START_LOGVAR
        first: Any = model.encoder.conv_in
        if first.in_channels == 3:
            gain = OPPONENT.T @ torch.diag(torch.tensor([1.0, 4.0, 4.0])) @ OPPONENT
            first.weight.copy_(torch.einsum("ocij,cd->odij", first.weight, gain))


STARTS: dict[str, Callable[[AutoencoderKL], None]] = {"default": lambda model: None, "skip": _skip}
"""Start values of an autoencoder that is trained from nothing, by name; the default are PyTorch's own."""


def recompute_blocks(model: nn.Module) -> None:
    """Gradient checkpointing: every residual and attention block keeps its input only, and computes its inside again
    for the gradients. Values and gradients stay the same."""
    for layer in model.modules():
        if isinstance(layer, ResnetBlock | AttnBlock):
            layer.forward = partial(_recomputed, layer.forward)  # pyright: ignore[reportAttributeAccessIssue]


def _recomputed(forward: Any, *inputs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return cast(Tensor, checkpoint(forward, *inputs, use_reentrant=False))

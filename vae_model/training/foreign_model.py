"""The model sections of latent-diffusion and generative-models as one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from .config import ConfigError
from .lightning_words import Settings

Tree = dict[str, Any]

ENGINES = ("AutoencodingEngine", "AutoencodingEngineLegacy")
"""generative-models' classes, whose arguments are configurations of their parts."""
KL_CLASSES = ("AutoencoderKL", "AutoencoderKLInferenceWrapper", "AutoencoderKLModeOnly")
_UNUSED = (
    "diff_boost_factor", "additional_decode_keys", "ae_optimizer_args", "disc_optimizer_args", "compile_model",
    "trainable_disc_params", "max_batch_size", "scheduler_config", "batch_resize_range",
)  # fmt: skip


def translate_model(section: Tree, found: Settings, unused: list[str], *, whole_file: bool) -> None:
    """Rewrite a model section in place; settings of other sections go into `found`, paths without use into `unused`.

    Args:    whole_file: whether other sections are theirs, too, so that their optimiser is meant.
    Raises: ConfigError for parts that cannot be trained here.
    """
    target = str(section.get("target", ""))
    root, _, name = target.rpartition(".")
    if name in (*ENGINES, *KL_CLASSES):
        section["target"] = "AutoEncoderKL"
    given: Any = section.get("params")
    if not isinstance(given, dict):
        return
    params = dict(cast(Tree, given))
    section["params"] = params
    _rename(params)
    if name in ENGINES or "encoder_config" in params:
        _take_parts(params)
    unused += [f"model.params.{key}" for key in _UNUSED if params.pop(key, None) is not None]
    package = root.split(".")[0]
    _take_optimizer(section, params, found, package if whole_file or package == "sgm" else "")
    _take_loss(params, unused)


def _rename(params: Tree) -> None:
    for theirs, ours in (("loss_config", "lossconfig"), ("image_key", "input_key")):
        if theirs in params:
            params.setdefault(ours, params.pop(theirs))
    engine = params.pop("ckpt_engine", None)
    if engine is not None:
        inner = cast(Tree, engine).get("params") or {} if isinstance(engine, dict) else {"ckpt_path": engine}
        params.setdefault("ckpt_path", cast(Tree, inner).get("ckpt_path"))
    monitor = params.get("monitor")
    if isinstance(monitor, str) and monitor.startswith("val/loss/"):
        params["monitor"] = f"val/{monitor.removeprefix('val/loss/')}_loss"
    if params.get("trainable_ae_params"):
        raise ConfigError("config: model.params.trainable_ae_params: expected none, got some: say train: [decoder]")
    params.pop("trainable_ae_params", None)


def _take_parts(params: Tree) -> None:
    """Encoder, decoder and regulariser; an engine has no 1x1 convolutions around the latent."""
    encoder = _part(params.pop("encoder_config", None), "encoder_config", "Encoder")
    decoder = _part(params.pop("decoder_config", None), "decoder_config", "Decoder")
    regularizer = params.pop("regularizer_config", None)
    _part(regularizer or {"target": "DiagonalGaussianRegularizer"}, "regularizer_config", "DiagonalGaussianRegularizer")
    if encoder is not None:
        params.setdefault("ddconfig", encoder)
        params.setdefault("use_quant_conv", False)
        params.setdefault("use_post_quant_conv", False)
    if decoder is not None and decoder != encoder:
        params.setdefault("decoder_ddconfig", decoder)


def _part(config: Any, where: str, name: str) -> Tree | None:
    """The arguments of a part."""
    if config is None:
        return None
    part: Any = config if isinstance(config, Mapping) else {}
    found = str(part.get("target", "nothing")).rsplit(".", 1)[-1]
    if found != name:
        raise ConfigError(f"config: model.params.{where}: expected {name}, got {found}: it cannot be trained here")
    return dict(part.get("params") or {})


def _take_optimizer(section: Tree, params: Tree, found: Settings, package: str) -> None:
    """Theirs is Adam, in latent-diffusion with other betas; generative-models takes the rate as it is."""
    config = cast(Tree, params.pop("optimizer_config", None) or {})
    factor = params.pop("lr_g_factor", None)
    if package in ("ldm", "sgm") or config:
        betas = {} if package == "sgm" else {"betas": [0.5, 0.9]}
        found["optimizer", "target"] = config.get("target", "torch.optim.Adam")
        found["optimizer", "params"] = config.get("params", betas)
    if package == "sgm":
        found["optimizer", "discriminator_params"] = {}
        rate = section.pop("base_learning_rate", None)
        if rate is not None:
            found["optimizer", "lr"] = float(rate) * float(factor or 1)
            found["optimizer", "discriminator_lr"] = float(rate)


def _take_loss(params: Tree, unused: list[str]) -> None:
    """A loss that is none stands in configurations made for using a model; the batch from which a discriminator is
    trained may be told to the model instead of the loss."""
    loss = params.get("lossconfig")
    if isinstance(loss, dict) and str(cast(Tree, loss).get("target", "")).rsplit(".", 1)[-1] == "Identity":
        del params["lossconfig"]
        unused.append("model.params.lossconfig")
    start = params.pop("disc_start_iter", None)
    if start:
        if isinstance(params.get("lossconfig"), dict):
            loss = dict(cast(Tree, params["lossconfig"]))
            loss["params"] = {"disc_start": start} | dict(loss.get("params") or {})
            params["lossconfig"] = loss
        else:
            unused.append("model.params.disc_start_iter")

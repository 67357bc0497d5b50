"""Configurations of latent-diffusion and generative-models, and Lightning's words, as one of ours.

What has a counterpart is taken, under `data.params`, `lightning`, `trainer` and the names of their engines; what has
none is told by its path. Settings that are ours already stay as they are and come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from .config import SECTIONS, ConfigError
from .lightning_words import UNUSED, WORDS, Settings, settings_of, settle_length

Tree = dict[str, Any]
Path = tuple[str, ...]

_SIZES = ("size", "crop_size", "resolution", "image_size")
_PLACES = (
    "training_images_list_file", "test_images_list_file", "images_list_file", "data_root", "root", "folder",
    "image_folder", "image_root", "data_dir", "img_dir", "txt_file",
)  # fmt: skip
_REFERENCE = re.compile(r"\$\{([\w.\-]+)\}")
_ENGINES = ("AutoencodingEngine", "AutoencodingEngineLegacy")
"""generative-models' classes, whose arguments are configurations of their parts."""
_KL_CLASSES = ("AutoencoderKL", "AutoencoderKLInferenceWrapper", "AutoencoderKLModeOnly")
PARAMS_THERE = {"loss_config": "lossconfig", "image_key": "input_key"}
"""Arguments of the model, and what they are called here."""
_MODEL_UNUSED = (
    "diff_boost_factor", "additional_decode_keys", "ae_optimizer_args", "disc_optimizer_args", "compile_model",
    "trainable_disc_params", "max_batch_size", "scheduler_config", "batch_resize_range",
)  # fmt: skip


def translate(tree: Tree) -> tuple[Tree, list[str]]:
    """(the same in our sections, paths of what is not used). What is ours already comes back unchanged.

    Raises: ConfigError for what would train something else than is asked for.
    """
    native = cast(Tree, _resolved(tree, tree))
    theirs = "lightning" in native or _is_foreign(native.get("data"))
    found, unused = settle_length(native)
    for path, value in _leaves(_taken_out(native), ()):
        settings = _settings(path, value, found)
        if settings is None or any(_at_odds(native, place, item) for place, item in settings.items()):
            unused.append(".".join(path))
        else:
            found |= settings
    if isinstance(native.get("model"), dict):
        _take_model(native["model"], found, unused, whole_file=theirs)
    if theirs:
        unused += [name for name in native if name not in SECTIONS]
        native = {name: section for name, section in native.items() if name in SECTIONS}
    optimizer = native.get("optimizer")
    if isinstance(optimizer, dict) and cast(Tree, optimizer).get("target") is not None:
        found.pop(("optimizer", "params"), None)  # they are arguments of another class
    if ("optimizer", "lr") in found and _at_odds(native, ("optimizer", "lr"), found["optimizer", "lr"]):
        unused.append("model.base_learning_rate")
    for (section, key), value in found.items():
        if native.get(section) is None:
            native[section] = {}
        if isinstance(native[section], dict):
            native[section].setdefault(key, value)
    return native, unused


def _at_odds(native: Tree, place: tuple[str, str], value: Any) -> bool:
    """Whether a setting is given in our words already, otherwise."""
    section = native.get(place[0])
    return isinstance(section, dict) and cast(Tree, section).get(place[1], value) not in (value, None)


def _is_foreign(data: Any) -> bool:
    return isinstance(data, dict) and bool(cast(Tree, data).keys() & {"target", "params"})


def _resolved(value: Any, root: Tree, depth: int = 0) -> Any:
    """A copy without OmegaConf's references: ${a.b} is what stands at a.b."""
    if isinstance(value, dict):
        return {key: _resolved(item, root, depth) for key, item in cast(Tree, value).items()}
    if isinstance(value, list):
        return [_resolved(item, root, depth) for item in cast("list[Any]", value)]
    whole = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if whole is None:
        return value
    target: Any = root
    for key in whole[1].split("."):
        target = cast(Tree, target).get(key) if isinstance(target, dict) else None
    if target is None or depth > 8:
        raise ConfigError(f"config: expected a reference to a key of the file, got {value}: write the value itself")
    return _resolved(target, root, depth + 1)


def _taken_out(native: Tree) -> Tree:
    """What is theirs, out of a file's content, in the order in which it counts: `trainer` comes behind `lightning`."""
    found: Tree = {"lightning": native.pop("lightning")} if "lightning" in native else {}
    if isinstance(native.get("trainer"), dict):
        trainer = cast(Tree, native["trainer"])
        found["trainer"] = {name: trainer.pop(name) for name in [*trainer] if name in WORDS or name in UNUSED}
    if _is_foreign(native.get("data")):
        found["data"] = {name: native["data"].pop(name) for name in ("target", "params") if name in native["data"]}
    return found


def _leaves(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The values of nested mappings and lists with their paths, numbers of list items left out of these.

    A strategy and the Trainer's values come in one piece.
    """
    whole = path == ("lightning", "strategy") or path[:-1] in (("trainer",), ("lightning", "trainer"))
    if isinstance(tree, dict) and not whole:
        for key, value in cast(Tree, tree).items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and not whole and any(isinstance(x, (dict, list)) for x in cast("list[Any]", tree)):
        for item in cast("list[Any]", tree):
            yield from _leaves(item, path)
    else:
        yield path, tree


def _settings(path: Path, value: Any, found: Settings) -> Settings | None:
    """What a value of theirs is in our words; None where it is not used, such as the class of a data module."""
    match path:
        case ("trainer", name) | ("lightning", "trainer", name):
            return settings_of(name, value)
        case ("lightning", "strategy"):
            return settings_of("strategy", value)
        case ("lightning", "modelcheckpoint", "params", "every_n_train_steps"):
            return {} if ("trainer", "check_every") in found else {("trainer", "check_every"): value}
        case ("lightning", "callbacks", *_, "max_images"):
            return {("output", "grids"): value}
        case ("data", *_, name):
            judged = any(part in ("validation", "val", "test") for part in path)
            key = "val" if judged else "train"
            if name in ("batch_size", "num_workers") and not judged:
                key = "workers" if name == "num_workers" else name
            elif name in _SIZES and isinstance(value, int):
                key = "val_crop" if judged else "crop"
            elif name not in _PLACES or not isinstance(value, str):
                return None
            return None if ("data", key) in found else {("data", key): value}
        case _:
            return None


def _take_model(section: Tree, found: Settings, unused: list[str], *, whole_file: bool) -> None:
    """Rewrite a model section in place; settings of other sections go into `found`, paths without use into `unused`.

    Args:    whole_file: whether other sections are theirs, too, so that their optimiser is meant.
    Raises: ConfigError for parts that cannot be trained here.
    """
    root, _, name = str(section.get("target", "")).rpartition(".")
    if name in (*_ENGINES, *_KL_CLASSES):
        section["target"] = "AutoEncoderKL"
    if not isinstance(section.get("params"), dict):
        return
    params = cast(Tree, section["params"])
    _rename(params, unused)
    if name in _ENGINES or "encoder_config" in params:
        _take_parts(params)
    unused += [f"model.params.{key}" for key in _MODEL_UNUSED if params.pop(key, None) is not None]
    package = root.split(".")[0]
    _take_optimizer(section, params, found, package if whole_file or package == "sgm" else "")
    _take_loss(params, unused)


def _rename(params: Tree, unused: list[str]) -> None:
    for theirs, ours in PARAMS_THERE.items():
        if theirs in params:
            value = params.pop(theirs)
            if params.setdefault(ours, value) not in (value, None):
                unused.append(f"model.params.{theirs}")
    engine = params.pop("ckpt_engine", None)
    if engine is not None:
        inner = cast(Tree, engine).get("params") or {} if isinstance(engine, dict) else {"ckpt_path": engine}
        params.setdefault("ckpt_path", cast(Tree, inner).get("ckpt_path"))
    monitor = params.get("monitor")
    if isinstance(monitor, str) and monitor.startswith("val/loss/"):
        params["monitor"] = f"val/{monitor.removeprefix('val/loss/')}_loss"
    if params.pop("trainable_ae_params", None):
        raise ConfigError("config: model.params.trainable_ae_params: expected none, got some: say train: [decoder]")


def _take_parts(params: Tree) -> None:
    """Encoder, decoder and regulariser; an engine has no 1x1 convolutions around the latent."""
    encoder = _part(params.pop("encoder_config", None), "encoder_config", "Encoder")
    decoder = _part(params.pop("decoder_config", None), "decoder_config", "Decoder")
    regularizer = params.pop("regularizer_config", None) or {"target": "DiagonalGaussianRegularizer"}
    _part(regularizer, "regularizer_config", "DiagonalGaussianRegularizer")
    if encoder is not None:
        ours = cast(Tree, params.get("ddconfig") or {})  # said on the command line
        params["ddconfig"] = encoder | ours
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
    start, loss = params.pop("disc_start_iter", None), params.get("lossconfig")
    if isinstance(loss, dict) and str(cast(Tree, loss).get("target", "")).rsplit(".", 1)[-1] == "Identity":
        del params["lossconfig"]
        loss = None
        unused.append("model.params.lossconfig")
    if start and isinstance(loss, dict):
        given = cast(Tree, loss)
        given["params"] = {"disc_start": start} | dict(given.get("params") or {})
    elif start:
        unused.append("model.params.disc_start_iter")

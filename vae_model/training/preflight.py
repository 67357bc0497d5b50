"""What a configuration alone tells to be wrong: said before Lightning is imported and a model is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import VAEFileError
from ..files.atomic import require_writable
from .arguments import unknown_names
from .config import BEST, LAST, ConfigError, TrainConfig, encoder_arguments, one_of, require
from .key_places import MODEL_KEYS
from .photo_set import find_pictures
from .unread import unread_problems


@dataclass(frozen=True)
class Inputs:
    """The files that a training starts from."""

    train: list[Path]
    val: list[Path]
    checkpoint: Path | None
    """What `--resume` goes on from."""


def check_inputs(config: TrainConfig, *, resume: bool = False) -> Inputs:
    """Find the pictures and the checkpoint, and check the names of the model's arguments; the output folder is made.

    Raises: ConfigError (or another one-line ValueError) for pictures or a start that are not there, unknown names, a
            folder that cannot be written, and a training without a length.
    """
    name = config.model.target.rsplit(".", 1)[-1]
    if name not in MODEL_KEYS and "first_stage_config" in config.model.params:
        raise ConfigError(
            f"model.target: expected an autoencoder, got {name}: train its params.first_stage_config, put that under "
            "`model` with a lossconfig"
        )
    require(one_of("model.target", name, MODEL_KEYS))
    require(_unknown_arguments(name, config.model.params) + unread_problems(name, config.model.params))
    train = find_pictures(config.data.train, "data.train")
    val = find_pictures(config.data.val, "data.val") if config.data.val else []
    if not (config.trainer.batches or config.trainer.epochs):
        raise ConfigError("trainer: expected batches or epochs, got neither: say how long to train")
    for key in ("ckpt_path", "teacher"):
        path = config.model.params.get(key)
        if isinstance(path, str) and path != "bundled" and not Path(path).exists():
            raise VAEFileError(f"{path}: expected a weight file, found none there: check model.params.{key}")
    if config.output.weights == BEST:
        raise ConfigError(f"output.weights: expected another name than that of the best weights, got {BEST}: change it")
    last = Path(config.output.folder) / LAST
    if resume and not last.is_file():
        raise ConfigError(f"--resume: expected {last}, found none: train without --resume, or name output.folder")
    require_writable(last)
    return Inputs(train, val, last if resume else None)


def require_free(folder: str) -> None:
    """ConfigError for an output folder that has a training already; told last, as all else is to be mended anyway."""
    if (Path(folder) / LAST).is_file():
        raise ConfigError(
            f"output.folder: expected one without a training, got {folder}: go on with --resume, or name another"
        )


def _unknown_arguments(name: str, params: Mapping[str, Any]) -> list[str]:
    """The problems of names that are no arguments of the model, its architecture or a loss of ours."""
    from .losses import LOSSES, is_own

    problems = unknown_names(params, MODEL_KEYS[name], "model.params")
    for section in ("ddconfig", "decoder_ddconfig"):
        if isinstance(params.get(section), Mapping):
            known = tuple(inspect.signature(encoder_arguments).parameters)
            problems += unknown_names(params[section], known, section)
    loss: Any = params.get("lossconfig")
    if not isinstance(loss, Mapping):
        return problems
    target = str(cast("Mapping[str, Any]", loss).get("target", "AutoencoderLoss"))
    given: Any = cast("Mapping[str, Any]", loss).get("params")
    make = None if is_own(target) else LOSSES.get(target.rpartition(".")[2])
    if make is not None and isinstance(given, Mapping):
        known = tuple(inspect.signature(make).parameters)
        problems += unknown_names(cast("Mapping[str, Any]", given), known, "lossconfig.params")
    return problems

"""Whether a training can go on from a checkpoint: the same model, the same optimizers, told before anything runs."""

from __future__ import annotations

import inspect
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_only

from ..errors.listed import some
from ..notes import tell
from .config import ConfigError, TrainConfig, encoder_arguments
from .model_module import plain

_FIXED = frozenset(
    {"ddconfig", "decoder_ddconfig", "embed_dim", "train", "ema_decay", "width", "blocks"}
    | {"scaling_factor", "shift_factor"}
)
"""Arguments of the models that must stay: with others the same tensors would be another network, or lose steps."""
_TOLD = {
    "data": ("train", "val", "batch_size", "crop", "scales", "flip"),
    "optimizer": ("lr", "params", "schedule", "warm_up", "final_share"),
    "trainer": ("accumulate", "clip", "precision", "seed"),
}
"""By section: what may be another one from here on, and is told; a length is meant to grow."""
_FREE = ("ddconfig.dropout", "ddconfig.resolution")


def check_checkpoint(path: Path, module: Any, config: TrainConfig) -> None:
    """Compare a checkpoint with what is to be trained, and tell the module how many batches there were.

    Raises: ConfigError naming the settings that differ, or what does not fit, or that the file is damaged.
    """
    stored = _read(path)
    module.on_load_checkpoint(stored)
    before: Any = stored.get("callbacks", {}).get("Record", {}).get("settings")
    different = [] if before is None else _different(plain(before), config, module)
    found = different or _unfitting(stored["state_dict"], module)
    if before is not None and not found:
        rank_zero_only(tell)("--resume", _changed(plain(before), config))
    if found:
        raise ConfigError(
            f"--resume: expected what {path} was trained with, got another {some(found, 3, '; ')}: "
            "put it back, or name another output.folder"
        )


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint. Its checksums are compared first: torch itself would take changed numbers."""
    reason = "it is empty" if path.stat().st_size == 0 else "it is cut off, damaged or no checkpoint"
    stored: Any = None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        reason = "it is damaged: its numbers are not those that were written"
        if broken is None:
            reason = "it is damaged"
            stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            reason = "it is not one of this trainer's"
    except pickle.UnpicklingError:
        reason = "it holds objects that are no weights; nothing of them was run"
    except Exception:  # both readers fail in many ways on files that are none, in words of their own
        pass
    if isinstance(stored, dict) and {"state_dict", "batches_done"} <= stored.keys():
        return dict(cast("dict[str, Any]", stored))
    raise ConfigError(
        f"--resume: expected a whole checkpoint, got {path}: {reason}; name another output.folder, and "
        "start there without --resume, by model.params.ckpt_path from the weights beside it"
    )


def _different(before: Mapping[str, Any], config: TrainConfig, module: Any) -> list[str]:
    """The settings that must not change and did; one that is left out has its default."""
    old, new = (_flat(params) for params in (before["model"]["params"], plain(config.model.params)))
    sources = {"": type(module).__init__, "ddconfig.": encoder_arguments, "decoder_ddconfig.": encoder_arguments}
    defaults = {
        f"{prefix}{name}": plain(parameter.default)
        for prefix, source in sources.items()
        for name, parameter in inspect.signature(source).parameters.items()
        if parameter.default is not parameter.empty
    }
    rows = [(f"model.params.{n}", *(side.get(n, defaults.get(n)) for side in (old, new))) for n in sorted({*old, *new})]
    names = [name.rsplit(".", 1)[-1].lower() for name in (before["model"]["target"], config.model.target)]
    rows += [("model.target", *names), ("optimizer.target", before["optimizer"]["target"], config.optimizer.target)]
    return [f"{name}, {b!r} instead of {a!r}" for name, a, b in rows if a != b and [a] != b and a != [b]]


def _changed(before: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """What to say of pictures, rates and the like that are other ones from here on."""
    after = plain(asdict(config))
    pairs = [
        (section, key, before.get(section) or {}, after[section]) for section, keys in _TOLD.items() for key in keys
    ]
    other = [
        f"{section}.{key} {new[key]!r} instead of {old[key]!r}"
        for section, key, old, new in pairs
        if key in old and key in new and old[key] != new[key]
    ]
    return [f"goes on with {some(other, between='; ')}"] if other else []


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """The fixed arguments by name, those of an architecture one by one."""
    rows: dict[str, Any] = {}
    for name in _FIXED & params.keys():
        value = params[name]
        rows |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in rows.items() if name not in _FREE}


def _unfitting(state: Mapping[str, Any], module: Any) -> list[str]:
    """The tensors that are not the same ones; the averages, and what belongs to the loss, by their settings."""
    averaged = any(name.startswith("model_ema.") for name in state)
    found = ["model.params.ema_decay, which decides on averages"] if averaged != (module.ema_decay is not None) else []
    theirs, ours = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith("model_ema.")}
        for tensors in (state, module.state_dict())
    )
    odd = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if any(name.startswith("loss.") for name in odd):
        found.append("model.params.lossconfig, which decides on a discriminator and learned values")
    odd = [name for name in odd if not name.startswith("loss.")]
    return found + [f"{n}, {ours.get(n) or 'none'} instead of {theirs.get(n) or 'none'}" for n in odd]

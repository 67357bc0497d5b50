"""The words of Lightning's Trainer, old and new, in this project's; the length of a training under all its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from .config import ConfigError

Settings = dict[tuple[str, str], Any]
"""(section, key) -> value, as in this project's configurations."""

LENGTHS = {"batches": "batches", "max_steps": "batches", "epochs": "epochs", "max_epochs": "epochs"}
"""The names of the length, ours and Lightning's, and what they count."""
_TRAINERS = (("trainer",), ("lightning", "trainer"))
"""The sections that may have it; the first comes first."""
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
_STRATEGIES = ("ddp", "dp", "ddp_spawn", "ddp_notebook", "ddp2", "horovod", "DDPStrategy", "DDPPlugin")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(key: str) -> Callable[[Any], Settings]:
    """A whole number under another name; -1 and null are none."""
    return lambda value: {("trainer", key): None if value in (-1, None) else value}


def _algorithm(value: Any) -> Settings:
    if value not in (None, "norm"):
        raise ConfigError(f"config: trainer.gradient_clip_algorithm: expected norm, got {value!r}: remove it")
    return {}


def _interval(value: Any) -> Settings | None:
    """So many batches; a share of an epoch has no counterpart but the whole one."""
    if _is_whole(value):
        return {("trainer", "check_every"): value}
    return {("trainer", "check_epochs"): 1} if value == 1.0 else None


def _devices(value: Any) -> Settings:
    """How many: 2, "2", "0,1", "0,", [0, 1], "auto" or -1 for all."""
    if isinstance(value, str) and "," in value:
        value = [number for number in value.split(",") if number.strip()]
    if isinstance(value, (list, tuple)):
        value = len(cast("list[Any]", value))
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    return {("trainer", "devices"): "auto" if value in (-1, None) else value}


def _gpus(value: Any) -> Settings:
    """The old way to ask for GPUs: a number, or their numbers; 0 for none."""
    if value in (0, None, "0", [], ""):
        return {("trainer", "accelerator"): "cpu"}
    return {("trainer", "accelerator"): "gpu", **_devices(value)}


def _accelerator(value: Any) -> Settings | None:
    """Once this named the strategy."""
    return _strategy(value) if str(value).startswith("ddp") else {("trainer", "accelerator"): value or "auto"}


def _strategy(value: Any) -> Settings | None:
    """All plain ones are what `auto` does with several devices."""
    if isinstance(value, Mapping):
        value = str(cast("Mapping[str, Any]", value).get("target", "")).rsplit(".", 1)[-1]
    name = str(value).removesuffix("_find_unused_parameters_true").removesuffix("_find_unused_parameters_false")
    if name in ("fsdp", "auto", "ddp"):
        return {("trainer", "strategy"): name}
    return {("trainer", "strategy"): "auto"} if name in _STRATEGIES or value is None else None


def _max_time(value: Any) -> Settings | None:
    """ "DD:HH:MM:SS", or a mapping of days, hours, minutes and seconds."""
    units = {"weeks": 10080.0, "days": 1440.0, "hours": 60.0, "minutes": 1.0, "seconds": 1 / 60}
    if isinstance(value, Mapping):
        parts = cast("Mapping[str, Any]", value)
    else:
        numbers = str(value).split(":")
        parts = dict(zip(("days", "hours", "minutes", "seconds"), numbers, strict=False)) if len(numbers) == 4 else {}
    try:
        minutes = sum(units[name] * float(number) for name, number in parts.items())
    except (KeyError, ValueError):
        return None
    return {("trainer", "max_minutes"): minutes} if parts else None


WORDS: dict[str, Callable[[Any], Settings | None]] = {
    "accumulate_grad_batches": lambda n: {("trainer", "accumulate"): n} if isinstance(n, (int, str)) else None,
    "gradient_clip_val": lambda norm: {("trainer", "clip"): norm or None},
    "gradient_clip_algorithm": _algorithm,
    "val_check_interval": _interval,
    "check_val_every_n_epoch": _count("check_epochs"),
    "log_every_n_steps": _count("log_every"),
    "precision": lambda value: {("trainer", "precision"): _PRECISIONS.get(str(value), value)},
    "devices": _devices,
    "gpus": _gpus,
    "accelerator": _accelerator,
    "strategy": _strategy,
    "num_nodes": lambda value: {("trainer", "num_nodes"): value},
    "max_time": _max_time,
    "limit_val_batches": lambda n: {("data", "val_limit"): n} if _is_whole(n) and n > 0 else None,
    "default_root_dir": lambda value: {("output", "folder"): value},
}
"""What they are here; None where a value has no counterpart. Lengths are not among them, see below."""

UNUSED = frozenset(
    {
        "amp_backend", "amp_level", "auto_lr_find", "auto_scale_batch_size", "auto_select_gpus", "barebones",
        "benchmark", "callbacks", "checkpoint_callback", "detect_anomaly", "deterministic", "distributed_backend",
        "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary", "enable_progress_bar",
        "fast_dev_run", "flush_logs_every_n_steps", "inference_mode", "ipus", "limit_predict_batches",
        "limit_test_batches", "limit_train_batches", "logger", "min_epochs", "min_steps", "model_registry",
        "move_metrics_to_cpu", "multiple_trainloader_mode", "num_processes", "num_sanity_val_steps",
        "overfit_batches", "plugins", "prepare_data_per_node", "process_position", "profiler",
        "progress_bar_refresh_rate", "reload_dataloaders_every_n_epochs", "replace_sampler_ddp",
        "resume_from_checkpoint", "stochastic_weight_avg", "sync_batchnorm", "target", "terminate_on_nan",
        "tpu_cores", "track_grad_norm", "truncated_bptt_steps", "use_distributed_sampler", "weights_save_path",
        "weights_summary",
    }
)  # fmt: skip
"""Words of the Trainer without a counterpart."""


def settings_of(name: str, value: Any) -> Settings | None:
    """One of the Trainer's words in ours; None for one that is not used here."""
    return WORDS[name](value) if name in WORDS else None


def is_length(path: Sequence[str]) -> bool:
    """Whether a key, with its sections, is a name of the length."""
    return path[-1] in LENGTHS and tuple(path[:-1]) in _TRAINERS


def settle_length(tree: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """(the length of a file's content, the keys of another one that is not used, as ours comes first); both taken out.

    Raises: ConfigError for a section that holds several.
    """
    ours, theirs = take_lengths(tree)
    for given in (ours, theirs):
        require_one_length(given)
    found: Settings = {("trainer", LENGTHS[key.rpartition(".")[2]]): value for key, value in (ours or theirs).items()}
    return found, list(theirs) if ours else []


def take_lengths(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Take all lengths out of a file's content: by their keys those of `trainer` and those of `lightning.trainer`."""
    found: list[dict[str, Any]] = []
    for path in _TRAINERS:
        section: Any = tree
        for name in path:
            section = cast("dict[str, Any]", section).get(name) if isinstance(section, dict) else None
        names = [name for name in section if name in LENGTHS] if isinstance(section, dict) else []
        found.append(given_lengths({".".join((*path, name)): section.pop(name) for name in names}))
    return found


def given_lengths(lengths: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given, of lengths by their keys with sections: null, and Lightning's -1, are none."""
    return {
        key: value
        for key, value in lengths.items()
        if value is not None and not (value == -1 and key.rpartition(".")[2].startswith("max_"))
    }


def require_one_length(lengths: Mapping[str, Any]) -> None:
    """ConfigError where lengths that are given contradict each other: batches and epochs, or two numbers of one."""
    kinds = {LENGTHS[key.rpartition(".")[2]] for key in lengths}
    if len(kinds) < 2 and len({str(value) for value in lengths.values()}) < 2:
        return
    listed = ", ".join(f"{key} {value}" for key, value in lengths.items())
    wanted = "one of batches and epochs, got both" if len(kinds) > 1 else f"one number of {kinds.pop()}, got two"
    raise ConfigError(f"config: trainer: expected {wanted} ({listed}): remove one")

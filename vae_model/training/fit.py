"""One training from its configuration: everything is checked first, then Lightning runs it."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import platform
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from ..exact.sharding.group import leave_together
from ..notes import tell
from .arguments import call_checked
from .checkpoint import AtomicCheckpointIO, Checkpoints
from .config import FALLBACK_CROP, ConfigError, TrainConfig
from .crops import Timetable, batches_of
from .distill import TinyDistillation
from .divergence import DivergedError
from .kl_module import AutoEncoderKL
from .loaders import Photographs
from .photo_set import PhotoSet, check_crops, small_note
from .preflight import Inputs, check_inputs, require_free
from .record import Pictures, Progress, Record, unjudged_note
from .rehearsal import check_channels, rehearse
from .resume import check_checkpoint
from .trained import Trained
from .unread import unread_notes

logger = logging.getLogger(__name__)

MODELS: dict[str, Any] = {
    "AutoEncoderKL": AutoEncoderKL,
    "AutoencoderKL": AutoEncoderKL,
    "TinyDistillation": TinyDistillation,
}
"""What `model.target` may name, by its last part."""

_WEIGHTS_ONLY = {"weights_only": True} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}
"""Lightning 2.6 asks how to read a checkpoint; before, `AtomicCheckpointIO` reads it so. `check_checkpoint` has
already read the same file without running anything in it."""


@dataclass
class Prepared:
    """A training that is ready to run."""

    trainer: Trainer
    module: Trained
    data: Photographs
    checkpoint: Path | None
    checkpoints: Checkpoints

    @property
    def ended(self) -> bool:
        """Whether the checkpoint is of the end already."""
        return self.module.batches_done >= self.module.total_batches


def prepare(
    config: TrainConfig, *, resume: bool = False, progress: bool = True, inputs: Inputs | None = None
) -> Prepared:
    """Check a configuration against the world and put the training together; nothing is trained or written.

    Args:    inputs: what `check_inputs` has found already.
    Raises: ConfigError (or another one-line ValueError) for missing folders, a monitor that nothing logs, a checkpoint
            that does not fit, and whatever else would end the training later.
    """
    for source in ("lightning.pytorch", "lightning.fabric"):  # they say at length which accelerators there are not
        logging.getLogger(source).setLevel(logging.WARNING)
    inputs = inputs or check_inputs(config, resume=resume)
    torch.manual_seed(config.trainer.seed)
    module: Trained = call_checked(MODELS[config.model.target.rsplit(".", 1)[-1]], config.model.params, "model.params")
    _check_strategy(config, module)
    cache_bytes = config.data.cache_gib * 2**30
    check_channels(module)
    channels = module.image_channels()[0]
    train = PhotoSet(inputs.train, cache_bytes, channels)
    val = PhotoSet(inputs.val, cache_bytes / 4, channels) if inputs.val else None
    if len(train) == 0 or (val is not None and len(val) == 0):
        raise ConfigError("data: expected pictures, got only files that cannot be read: name other folders")
    _configure(module, config, len(train))
    factor = module.factor()
    stages = config.data.all_stages
    check_crops([size for _, size, _ in stages], factor, train.shorter_sides.tolist(), staged=bool(config.data.stages))
    multiple = max(32, factor)
    val_side = max(config.data.val_crop or FALLBACK_CROP, multiple) // multiple * multiple
    if inputs.checkpoint is not None:
        check_checkpoint(inputs.checkpoint, module, config)
    rehearse(module, stages, val_side if val else None)
    if inputs.checkpoint is None:
        require_free(config.output.folder)
    data = Photographs(config.data, train, val, multiple, config.trainer.seed)
    _tell_notes(config, module, train, judged=val is not None)
    checkpoints = _checkpoints(config, module, len(train))
    return Prepared(_trainer(config, module, checkpoints, progress), module, data, inputs.checkpoint, checkpoints)


def _tell_notes(config: TrainConfig, module: Trained, train: PhotoSet, *, judged: bool) -> None:
    """What a training will not do, and what may not be as it was meant, once of several processes."""
    tell_once = rank_zero_only(tell)
    if not judged:
        tell_once("data.val", [unjudged_note(module, config.output.grids > 0)])
    small = small_note(train.shorter_sides.tolist(), config.data.all_stages)
    if small is not None:
        tell_once("data.train", [small])
    if module.batches_done < module.total_batches:
        judged_from = None if module.criterion.discriminator is None else module.criterion.disc_start
        tell_once("config", list(unread_notes(config, module.total_batches, judged_from)))


def run(prepared: Prepared) -> None:
    """Train to the end, or until the user or the clock stops it; nothing where the end has been reached before.

    Raises: DivergedError at the first loss, gradient or weight that is not finite.
    """
    if prepared.ended:
        return
    with warnings.catch_warnings():
        # Both advise many worker processes; pictures that are kept decoded need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Consider increasing the value of the `num_workers`.*")
        # Its own use of what torch has deprecated, and a loader that counts its batches itself.
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        try:
            fit: Any = prepared.trainer.fit
            fit(prepared.module, datamodule=prepared.data, ckpt_path=prepared.checkpoint, **_WEIGHTS_ONLY)
        except DivergedError as error:
            saved, folder = prepared.checkpoints.saved_after, prepared.checkpoints.folder
            kept = f"{folder} is as after batch {saved}, from where --resume goes on" if saved else "nothing is written"
            raise DivergedError(f"{error}; {kept}") from error
    leave_together()


def _configure(module: Trained, config: TrainConfig, photos: int) -> None:
    """Tell the module how long, how fast and how."""
    wanted, stages = config.trainer, config.data.all_stages
    batches = wanted.batches or batches_of(wanted.epochs or 0, photos, stages, processes(config))
    module.total_batches = -(-batches // wanted.accumulate) * wanted.accumulate
    module.accumulate, module.clip, module.seed = wanted.accumulate, wanted.clip, wanted.seed
    module.settings = config.optimizer
    if config.model.base_learning_rate is not None:
        rate = config.model.base_learning_rate * stages[0][2] * processes(config) * wanted.accumulate
        module.settings = replace(config.optimizer, lr=rate)
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = wanted.accelerator == "cpu" or (wanted.accelerator == "auto" and not found)
    # FSDP spreads ordinary tensors only; on CPUs every GroupNorm would turn its input back (see `GroupNorm`).
    if wanted.channels_last and wanted.strategy != "fsdp" and not on_cpu:
        module.model.to(memory_format=torch.channels_last)  # pyright: ignore


def processes(config: TrainConfig) -> int:
    """How many processes share a training; "auto" devices count as one here."""
    devices = config.trainer.devices
    return (devices if isinstance(devices, int) and devices > 0 else 1) * config.trainer.num_nodes


def _checkpoints(config: TrainConfig, module: Trained, photos: int) -> Checkpoints:
    wanted, out = config.trainer, config.output
    every = wanted.check_epochs or (1 if wanted.epochs is not None else None)
    timetable = Timetable(config.data.all_stages, module.total_batches, processes(config))
    epochs = None if every is None else partial(timetable.epochs, pictures=photos * every)
    return Checkpoints(Path(out.folder), out.weights, out.dtype, wanted.check_every, wanted.max_minutes, epochs)


def _trainer(config: TrainConfig, module: Trained, checkpoints: Checkpoints, progress: bool) -> Trainer:
    wanted, folder = config.trainer, checkpoints.folder
    settings = asdict(config)
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("train", "val")}
    settings.pop("output")
    record = Record(folder / "training.json", settings)
    pictures = [Pictures(folder / "images", config.output.grids)] if config.output.grids else []
    checkpoints.unjudged = [record.on_validation_end, *(each.draw_samples for each in pictures)]
    bar = [Progress(refresh_rate=min(wanted.log_every, 10))] if progress else []
    loggers: list[Any] = [CSVLogger(folder, name="log")]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="log"))
    machine: dict[str, Any] = {
        "accelerator": wanted.accelerator,
        "devices": wanted.devices,
        "num_nodes": wanted.num_nodes,
        "precision": _precision(wanted.precision, wanted.accelerator),
    }
    try:
        return Trainer(
            **machine,
            strategy=_strategy(config, module),
            max_epochs=1,
            val_check_interval=1,  # `Checkpoints` decides after every batch
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if config.data.val else 0,
            log_every_n_steps=wanted.log_every,
            logger=loggers,
            callbacks=[record, *pictures, *bar, checkpoints],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            deterministic="warn" if torch.cuda.is_available() else True,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"trainer: expected what this machine has, got {machine}: change it ({reason})") from error


def _strategy(config: TrainConfig, module: Trained) -> Any:
    """Lightning's: plain, DDP, or FSDP (version 2, which also runs on CPUs)."""
    wanted, count = config.trainer.strategy, processes(config)
    if wanted == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=count, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if wanted == "auto" and count == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=module.criterion.discriminator is not None, broadcast_buffers=False)


def _check_strategy(config: TrainConfig, module: Trained) -> None:
    """What spread weights cannot do."""
    learned: Any = getattr(module.criterion, "get_trainable_autoencoder_parameters", tuple)
    if config.trainer.strategy != "fsdp":
        return
    if module.criterion.discriminator is not None or list(learned()):
        raise ConfigError(
            "trainer.strategy: expected ddp for a loss with parameters of its own (discriminator, learned logvar), "
            "got fsdp: change one of them"
        )
    if not isinstance(config.trainer.devices, int) or config.trainer.devices < 1:
        raise ConfigError(f"trainer.devices: expected a number with fsdp, got {config.trainer.devices!r}: say how many")


def _precision(wanted: str, accelerator: str) -> str:
    """What `auto` means here."""
    if wanted == "16-mixed" and (accelerator == "cpu" or not (torch.cuda.is_available() or torch.mps.is_available())):
        logger.warning("trainer.precision: expected a GPU for 16-mixed, got none: bf16-mixed is taken")
        return "bf16-mixed"
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = platform.machine() in ("x86_64", "AMD64") and (
        torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
        or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    )
    return "bf16-mixed" if native else "32-true"

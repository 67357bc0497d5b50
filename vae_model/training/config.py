"""The settings of a training, as checked frozen dataclasses: one per section of the YAML file, all defaults here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ..errors import InputError

PRECISIONS = ("auto", "32-true", "64-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp")
EXPORT_DTYPES = ("float32", "bfloat16", "float16")
LAST = "last.ckpt"
BEST = "best.safetensors"
SCORE = "best.json"
"""The checkpoint, the best weights and their score, in `output.folder`."""
SECTIONS = ("model", "optimizer", "data", "trainer", "output")
FALLBACK_CROP = 256
"""Pixels, where neither the data nor the model say a size."""
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, final: 1.0,
    "linear": lambda done, final: 1.0 - (1.0 - final) * done,
    "cosine": lambda done, final: final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""(share of the training that is done, final share) -> share of the peak rate."""


class ConfigError(InputError):
    """A configuration that cannot be trained with: all its problems, in one line."""


def require(problems: list[str]) -> None:
    """ConfigError naming all problems, sorted, where there are any."""
    if problems:
        raise ConfigError(f"config: {'; '.join(sorted(problems))}")


def one_of(name: str, value: str, known: Mapping[str, Any] | tuple[str, ...]) -> list[str]:
    """The problem, if `value` is not among the `known` names."""
    return [] if value in known else [f"{name}: expected one of {', '.join(known)}, got {value!r}: choose one of these"]


def at_least(section: Any, where: str, least: Mapping[str, float]) -> list[str]:
    """The problems of those fields that are below what they must at least be."""
    values = {name: getattr(section, name) for name in least if getattr(section, name) is not None}
    odd = [name for name, value in values.items() if not isinstance(value, (int, float)) or value == math.inf]
    return [f"{where}.{name}: expected a finite number, got {values[name]!r}: correct it" for name in odd] + [
        f"{where}.{name}: expected at least {least[name]:g}, got {value}: raise it"
        for name, value in values.items()
        if name not in odd and not value >= least[name]
    ]


@dataclass(frozen=True)
class ModelSection:
    """What is trained, by the name of its class, with the arguments of that class."""

    target: str = "AutoEncoderKL"
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base_learning_rate: float | None = None
    """The old way to give the rate: this times all images of one step. `optimizer.lr` otherwise."""


@dataclass(frozen=True)
class OptimizerSection:
    """The two optimisers and their common schedule: a linear warm-up, then the named curve down to `final_share`."""

    target: str = "torch.optim.AdamW"
    lr: float = 1e-4
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of the autoencoder's optimiser."""
    discriminator_target: str = "torch.optim.Adam"
    discriminator_lr: float | None = None
    """None: as `lr`."""
    discriminator_params: Mapping[str, Any] = field(default_factory=lambda: {"betas": [0.5, 0.9]})
    schedule: str = "constant"
    warm_up: int = 0
    """Batches until the full rate."""
    final_share: float = 0.01
    """The rate at the end of a falling schedule, as a share of the peak."""

    def __post_init__(self) -> None:
        problems = one_of("optimizer.schedule", self.schedule, SCHEDULES)
        require(problems + at_least(self, "optimizer", {"lr": 0, "warm_up": 0, "final_share": 0}))

    @property
    def both(self) -> tuple[tuple[float, dict[str, Any]], ...]:
        """(peak rate, its class and arguments) of the autoencoder's optimiser and of the discriminator's."""
        rate = self.lr if self.discriminator_lr is None else self.discriminator_lr
        return (
            (self.lr, {"target": self.target, "params": self.params}),
            (rate, {"target": self.discriminator_target, "params": self.discriminator_params}),
        )

    def rate_share(self, batch: int, batches: int) -> float:
        """The share of the peak rates at batch number `batch` of `batches`: warm-up times curve.

        It follows from the number alone, so that a resumed training needs no state.
        """
        rising = min(1.0, (batch + 1) / self.warm_up) if self.warm_up else 1.0
        return rising * SCHEDULES[self.schedule](min(1.0, batch / batches), self.final_share)


@dataclass(frozen=True)
class DataSection:
    """Where the photographs are and how they are cut; sizes in pixels."""

    train: tuple[str, ...] = ()
    """Folders (searched through all their subfolders), picture files, or .txt lists of files."""
    val: tuple[str, ...] = ()
    """The same, for judging; may be empty."""
    batch_size: int = 8
    """Crops per batch and process."""
    crop: int | None = None
    """Side of the squares; null for `model.params.ddconfig.resolution`, and 256 where that is not given either."""
    stages: tuple[tuple[float, int, int], ...] = ()
    """Instead of `crop` and `batch_size`: (share of the training from which it holds, crop, batch_size)."""
    scales: tuple[float, ...] = (1.0,)
    """How much larger than the crop the square may be that is cut and then shrunk to it; drawn evenly."""
    flip: bool = True
    val_crop: int | None = None
    """Longest sides of the middles that are judged; null as for `crop`."""
    val_limit: int | None = None
    """How many photographs the checks during the training look at."""
    workers: int = 0
    """Processes that read pictures."""
    cache_gib: float = 2.0
    """Pictures stay decoded in memory where all of them fit into this."""

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "crop": 8, "val_crop": 8, "val_limit": 1, "workers": 0, "cache_gib": 0}
        problems = at_least(self, "data", least)
        starts = [stage[0] for stage in self.stages]
        if starts and (starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1):
            problems.append(f"data.stages: expected rising shares from 0 to below 1, got {starts}: put them in order")
        if any(crop < 8 or batch < 1 for _, crop, batch in self.stages):
            problems.append("data.stages: expected crops of at least 8 and batches of at least 1, got less: raise them")
        if not self.scales or min(self.scales) < 1:
            problems.append(f"data.scales: expected numbers of at least 1, got {list(self.scales)}: raise them")
        require(problems)

    @property
    def all_stages(self) -> tuple[tuple[float, int, int], ...]:
        """The stages of crop and batch sizes, also where there is one only."""
        return self.stages or ((0.0, self.crop or FALLBACK_CROP, self.batch_size),)


@dataclass(frozen=True)
class TrainerSection:
    """How long and on what. Batches are counted per process, whatever the number of optimisers."""

    batches: int | None = None
    """The length of the training; or `epochs`, how often every photograph is seen."""
    epochs: int | None = None
    check_every: int = 500
    """Batches between checks: judging, pictures, checkpoint, weights."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    clip: float | None = 1.0
    """Largest norm of all gradients of one optimiser; null for no limit."""
    precision: str = "auto"
    """auto: bf16-mixed where the CPU or GPU computes in bfloat16, else 32-true. The loss is never in 16 bits.
    16-mixed, for older GPUs, scales gradients; weights in 16 bits (16-true) would lose small steps and are refused."""
    channels_last: bool = True
    """Keep activations with their channels together in memory, which convolutions on GPUs mostly prefer."""
    accelerator: str = "auto"
    devices: str | int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    seed: int = 0
    max_minutes: float | None = None
    """Stop at the end of the batch in which this is over; `--resume` goes on."""
    log_every: int = 10
    check_epochs: int | None = None
    """Epochs between further checks; null for every epoch where `epochs` is given, else none."""

    def __post_init__(self) -> None:
        problems = one_of("trainer.precision", self.precision, PRECISIONS)
        problems += one_of("trainer.strategy", self.strategy, STRATEGIES)
        counts = ("batches", "epochs", "check_every", "accumulate", "num_nodes", "log_every", "check_epochs")
        least = dict.fromkeys(counts, 1.0) | {"seed": 0.0, "max_minutes": 0.0}
        problems += at_least(self, "trainer", least)
        if self.batches is not None and self.epochs is not None:
            problems.append("trainer: expected one of batches and epochs, got both: remove one")
        if self.seed >= 2**63:
            problems.append(f"trainer.seed: expected a number below 2 ** 63, got {self.seed}: lower it")
        if self.clip is not None and self.clip <= 0:
            problems.append(f"trainer.clip: expected a positive number or null, got {self.clip}: correct it")
        require(problems)


@dataclass(frozen=True)
class OutputSection:
    """What is written, and where."""

    folder: str = "training"
    weights: str = "vae.safetensors"
    """The newest weights (the averaged ones, if there are any), to be opened by every loader."""
    dtype: str = "float16"
    """Of the written weights."""
    grids: int = 4
    """Photographs in the picture of input, reconstruction and difference; 0 for none."""

    def __post_init__(self) -> None:
        problems = one_of("output.dtype", self.dtype, EXPORT_DTYPES) + at_least(self, "output", {"grids": 0})
        if Path(self.weights).name != self.weights:
            problems.append(f"output.weights: expected a name alone, got {self.weights!r}: say output.folder")
        if not self.weights.endswith((".safetensors", ".sft")):
            problems.append(f"output.weights: expected a name ending in .safetensors, got {self.weights!r}: rename it")
        require(problems)


@dataclass(frozen=True)
class TrainConfig:
    """A whole training."""

    model: ModelSection = field(default_factory=ModelSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    data: DataSection = field(default_factory=DataSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    output: OutputSection = field(default_factory=OutputSection)

    def __post_init__(self) -> None:
        ddconfig: Any = self.model.params.get("ddconfig")
        side: Any = cast("Mapping[str, Any]", ddconfig).get("resolution") if isinstance(ddconfig, Mapping) else None
        if not isinstance(side, int) or side < 8:
            side = FALLBACK_CROP
        crops = {name: getattr(self.data, name) or side for name in ("crop", "val_crop")}
        object.__setattr__(self, "data", replace(self.data, **crops))


def encoder_arguments(
    *,
    ch: int,
    in_channels: int,
    out_ch: int,
    num_res_blocks: int,
    z_channels: int,
    ch_mult: tuple[int | float, ...] = (1, 2, 4, 8),
    attn_resolutions: tuple[int, ...] = (),
    dropout: float = 0.0,
    resamp_with_conv: bool = True,
    resolution: int = 256,
    double_z: bool = True,
    use_linear_attn: bool = False,
    attn_type: str = "vanilla",
    num_groups: int = 32,
    conv_shortcut: bool = False,
    tanh_out: bool = False,
    give_pre_end: bool = False,
) -> dict[str, Any]:
    """The arguments a ddconfig may have, with their types."""
    return locals()

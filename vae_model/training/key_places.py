"""Where a key of a configuration belongs, for one that stands in another place or has another trainer's name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import get_type_hints

from .config import TrainConfig, encoder_arguments

MODEL_KEYS: dict[str, tuple[str, ...]] = {
    "AutoEncoderKL": (
        "ddconfig", "embed_dim", "lossconfig", "ckpt_path", "ignore_keys", "colorize_nlabels", "monitor", "ema_decay",
        "start", "train", "gradient_checkpointing", "input_key", "decoder_ddconfig", "use_quant_conv",
        "use_post_quant_conv", "ckpt_variant", "ckpt_part", "image_key",
    ),
    "TinyDistillation": (
        "teacher", "train", "width", "blocks", "scaling_factor", "shift_factor", "target", "latent_weight",
        "lossconfig", "monitor", "ema_decay", "gradient_checkpointing", "input_key", "teacher_variant", "teacher_part",
    ),
}  # fmt: skip
"""The arguments of the models. They are Lightning's modules, whose import takes ten times as long as a look here."""
MODEL_KEYS["AutoencoderKL"] = MODEL_KEYS["AutoEncoderKL"]

_PARAMS, _DDCONFIG, _LOSS = "model.params", "model.params.ddconfig", "model.params.lossconfig.params"
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "optimizer.lr": ("learning_rate", "base_lr", "init_lr", "ae_lr", "g_lr", "lr_g"),
    "optimizer.discriminator_lr": ("disc_lr", "d_lr", "lr_d"),
    "optimizer.target": ("optim", "optimiser", "optimizer", "type", "name"),
    "optimizer.params.weight_decay": ("weight_decay", "wd"),
    "optimizer.params.betas": ("betas", "beta1", "beta2", "adam_betas"),
    "optimizer.schedule": ("scheduler", "lr_scheduler", "lr_schedule", "lr_scheduler_type", "scheduler_config"),
    "optimizer.warm_up": ("warmup", "warmup_steps", "warm_up_steps", "lr_warmup_steps", "num_warmup_steps"),
    "data.train": ("train_dir", "train_data_dir", "data_dir", "data_root", "root", "dataset", "dataset_path", "images",
                   "image_dir", "train_path", "photos", "path"),
    "data.val": ("val_dir", "validation", "valid", "val_path", "eval", "test", "val_data", "validation_dir"),
    "data.batch_size": ("bs", "batch", "train_batch_size", "per_device_train_batch_size", "batchsize"),
    "data.crop": ("crop_size", "size", "image_size", "img_size", "resolution", "patch_size"),
    "data.workers": ("num_workers", "n_workers", "dataloader_num_workers"),
    "data.val_limit": ("limit_val_batches", "max_val_images"),
    "data.flip": ("random_flip", "hflip", "horizontal_flip"),
    "trainer.batches": ("max_steps", "max_train_steps", "steps", "num_steps", "train_steps", "total_steps",
                        "iterations", "max_iters", "iters", "num_iterations"),
    "trainer.epochs": ("max_epochs", "num_epochs", "n_epochs", "num_train_epochs"),
    "trainer.check_every": ("val_check_interval", "val_every", "eval_every", "save_every", "checkpoint_every",
                            "save_steps", "eval_steps", "checkpointing_steps", "validation_steps"),
    "trainer.check_epochs": ("check_val_every_n_epoch", "save_every_n_epochs"),
    "trainer.accumulate": ("accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum", "accumulation"),
    "trainer.clip": ("gradient_clip_val", "max_grad_norm", "grad_clip", "clip_grad_norm", "clip_grad"),
    "trainer.precision": ("mixed_precision", "fp16", "bf16", "amp", "dtype"),
    "trainer.devices": ("gpus", "num_gpus", "gpu", "n_gpus"),
    "trainer.accelerator": ("device",),
    "trainer.num_nodes": ("nodes",),
    "trainer.max_minutes": ("max_time", "max_train_time", "time_limit"),
    "trainer.log_every": ("log_every_n_steps", "logging_steps", "log_interval", "log_steps"),
    "output.folder": ("output", "output_dir", "out_dir", "out", "outdir", "save_dir", "logdir", "log_dir", "o",
                      "default_root_dir", "results_folder", "save_path", "checkpoint_dir"),
    "output.weights": ("output_name", "filename"),
    "output.grids": ("max_images", "num_images"),
    f"{_PARAMS}.ckpt_path": ("ckpt", "checkpoint", "pretrained", "weights", "vae", "vae_path", "init_from",
                             "pretrained_model_name_or_path", "model"),
    f"{_PARAMS}.ema_decay": ("ema", "use_ema", "decay"),
    f"{_PARAMS}.lossconfig": ("loss", "loss_config", "loss_fn"),
    f"{_PARAMS}.embed_dim": ("latent_channels", "latent_dim"),
    f"{_DDCONFIG}.z_channels": ("latent_channels",),
    f"{_DDCONFIG}.ch": ("channels", "base_channels"),
    f"{_DDCONFIG}.ch_mult": ("channel_multipliers", "channel_mult"),
    f"{_LOSS}.kl_weight": ("kl_beta", "beta", "kl"),
    f"{_LOSS}.disc_weight": ("gan_weight", "adv_weight"),
    f"{_LOSS}.terms": ("perceptual_weight", "lpips_weight", "pixel_weight"),
}  # fmt: skip
"""What other trainers, and Lightning itself, call our keys."""
_MOST = 3


def places_of(path: str) -> list[str]:
    """The keys, with their sections, that `path` may mean, the likeliest first; nothing where none is near.

    Args:    path: a key as it was given, such as "trainer.batch_size" or "epochs".
    """
    above, _, name = path.rpartition(".")
    name = name.lower().replace("-", "_")
    known = list(_known())
    if f"{above}.{name}" in known:
        return [f"{above}.{name}"]
    found = [place for place, names in _OTHER_NAMES.items() if name in names]
    found += [place for place in known if place.rpartition(".")[2] == name]
    if not found:
        found = _near(name, [place for place in known if place.rpartition(".")[0] == above], 0.7)
    if not found:
        others = {other: place for place, names in _OTHER_NAMES.items() for other in names}
        close = get_close_matches(name, others, n=1, cutoff=0.8)
        found = [*(others[other] for other in close), *_near(name, known, 0.8)]
    return list(dict.fromkeys(place for place in found if place != path))[:_MOST]


def advice(path: str) -> str:
    """What to do about a key that is not known where it stands."""
    places = places_of(path)
    return f"say {' or '.join(places)}" if places else "correct or remove it"


def advice_on_option(word: str) -> str:
    """What to do about a word of the command line that begins with a dash."""
    name, equals, value = word.lstrip("-").partition("=")
    if name in ("config", "c", "cfg", "base", "b"):
        return "write the name of the configuration alone"
    places = places_of(name)
    return f"write {places[0]}={value if equals else 'VALUE'}" if places else "write for example trainer.batches=100"


def advice_on_word(word: str) -> str:
    """What to do about a word of the command line without a value."""
    if word.endswith(".ckpt"):
        return "say --resume alone, which goes on from the last.ckpt of output.folder"
    if any(word == known or known.startswith(f"{word}.") for known in _known()):
        return f"write {word}=VALUE, without spaces"
    return "write for example trainer.batches=100"


def _near(name: str, places: list[str], cutoff: float) -> list[str]:
    names = [place.rpartition(".")[2] for place in places]
    match = get_close_matches(name, names, n=1, cutoff=cutoff)
    return [place for place, last in zip(places, names, strict=True) if last in match]


def _known() -> Iterator[str]:
    """All keys with their sections."""
    from .autoencoder_loss import AutoencoderLoss

    for section, kind in get_type_hints(TrainConfig).items():
        assert is_dataclass(kind)
        yield from (f"{section}.{entry.name}" for entry in fields(kind))
    yield from dict.fromkeys(f"{_PARAMS}.{name}" for names in MODEL_KEYS.values() for name in names)
    yield from (f"{_DDCONFIG}.{name}" for name in inspect.signature(encoder_arguments).parameters)
    yield from (f"{_LOSS}.{name}" for name in inspect.signature(AutoencoderLoss).parameters)

"""The files that one autoencoder comes in, written by functions: every one of them is the same model.

A writer gets the model and an empty folder, and returns what to load, and with which options. Folders: `folder_kinds`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exact_vae.vae_model.checkpoint.save import layouts_of, to_layout
from safetensors.torch import save_file
from torch import Tensor, nn

Source = tuple[Any, dict[str, Any]]
"""What `load_vae` gets, and its options."""


@dataclass(frozen=True)
class Made:
    """A model, what a config.json says of it, and where to write."""

    model: nn.Module
    settings: Mapping[str, Any]
    folder: Path

    def own(self) -> dict[str, Tensor]:
        """Its tensors under the names of its family's first layout; of a tiny one under ComfyUI's."""
        names = list(layouts_of(self.model))
        return self._named("taesd-comfyui" if "taesd-comfyui" in names else names[0])

    def theirs(self) -> dict[str, Tensor]:
        """Under diffusers' names."""
        return self._named(next(name for name in layouts_of(self.model) if name in ("diffusers", "taesd-diffusers")))

    def _named(self, layout: str) -> dict[str, Tensor]:
        return {key: tensor.clone().contiguous() for key, tensor in to_layout(self.model, layout).items()}

    def config(self, folder: Path) -> None:
        """A config.json, as beside every file of diffusers."""
        fields = {"_class_name": "AutoencoderKL", "latent_channels": 4, **self.settings}
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def whole(name: str) -> Callable[[Made], Source]:
    """One safetensors file of that name."""

    def write(made: Made) -> Source:
        save_file(made.own(), made.folder / name)
        return made.folder / name, {}

    return write


def pickled(
    name: str, around: Callable[[dict[str, Tensor]], Any] = lambda state: state, *, zipped: bool = True
) -> Callable[[Made], Source]:
    """One of torch's files, with something around the weights."""

    def write(made: Made) -> Source:
        torch.save(around(made.own()), made.folder / name, _use_new_zipfile_serialization=zipped)
        return made.folder / name, {}

    return write


def compressed(made: Made) -> Source:
    torch.save(made.own(), made.folder / "plain.pt")
    with zipfile.ZipFile(made.folder / "plain.pt") as old, zipfile.ZipFile(made.folder / "small.pt", "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return made.folder / "small.pt", {}


def prefixed(prefix: str, name: str = "vae.safetensors") -> Callable[[Made], Source]:
    """Every name behind a prefix, in a file of safetensors or of torch."""

    def write(made: Made) -> Source:
        tensors = {prefix + key: tensor for key, tensor in made.own().items()}
        save_file(tensors, made.folder / name) if name.endswith("safetensors") else torch.save(
            tensors, made.folder / name
        )
        return made.folder / name, {}

    return write


def compiled_inside(made: Made) -> Source:
    save_file({key.replace(".", "._orig_mod.", 1): t for key, t in made.own().items()}, made.folder / "c.safetensors")
    return made.folder / "c.safetensors", {}


def beside(**others: Tensor) -> Callable[[Made], Source]:
    """Tensors of other models in the same file; dots are written as two underscores."""

    def write(made: Made) -> Source:
        save_file(
            {**made.own(), **{key.replace("__", "."): t for key, t in others.items()}}, made.folder / "b.safetensors"
        )
        return made.folder / "b.safetensors", {}

    return write


def whole_checkpoint(made: Made) -> Source:
    others = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3), "alphas": torch.zeros(9)}
    others["cond_stage_model.transformer.text_model.embeddings.weight"] = torch.zeros(2, 2)
    save_file({f"first_stage_model.{key}": t for key, t in made.own().items()} | others, made.folder / "sd.safetensors")
    return made.folder / "sd.safetensors", {}


def by_halves(made: Made) -> Source:
    """{"encoder": ..., "decoder": ..., ...}: every part of the model in a dictionary of its own."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in made.own().items():
        first, _, rest = key.partition(".")
        parts.setdefault(first, {})[rest] = tensor
    torch.save(parts, made.folder / "parts.pt")
    return made.folder / "parts.pt", {}


def chosen(part: str, **names: bool) -> Callable[[Made], Source]:
    """Several models in one checkpoint, one of them asked for; those with True are the model, others are others."""

    def write(made: Made) -> Source:
        other = {key: tensor + 1 for key, tensor in made.own().items()}
        torch.save({name: made.own() if own else other for name, own in names.items()}, made.folder / "several.pt")
        return made.folder / "several.pt", {"part": part}

    return write


# -- what a training kept beside the weights ---------------------------------------------------------------------------


@contextmanager
def foreign(module: str, *names: str) -> Iterator[list[Any]]:
    """Classes of a package that is not there, for the time of writing a pickle that names them."""
    parts = module.split(".")
    ways = [".".join(parts[: end + 1]) for end in range(len(parts))]
    added = {way: types.ModuleType(way) for way in ways if way not in sys.modules}
    before = dict(sys.modules)
    sys.modules.update(added)
    kinds = [type(name, (dict,) if name == "AttributeDict" else (), {"__module__": module}) for name in names]
    missing = [kind for kind in kinds if not hasattr(sys.modules[module], kind.__name__)]
    for kind in missing:
        setattr(sys.modules[module], kind.__name__, kind)
    try:
        yield [getattr(sys.modules[module], kind.__name__) for kind in kinds]
    finally:
        for kind in missing:
            delattr(sys.modules[module], kind.__name__)
        for way in added:
            sys.modules.pop(way, None)
        assert sys.modules.keys() >= before.keys() - added.keys()


def lightning_2022(zipped: bool) -> Callable[[Made], Source]:
    """As pytorch-lightning 1 wrote it: callbacks under their classes, hyperparameters in a dictionary of its own."""

    def write(made: Made) -> Source:
        path = made.folder / "lightning.ckpt"
        with (
            foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") as (callback,),
            foreign("pytorch_lightning.utilities.parsing", "AttributeDict") as (settings,),
        ):
            held = settings()
            held["lr"] = 1e-4
            content = {
                "epoch": 9,
                "state_dict": {f"first_stage_model.{key}": tensor for key, tensor in made.own().items()},
                "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "best_model_path": "a.ckpt"}},
                "hyper_parameters": held,
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
            }
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path, {}

    return write


def omegaconf(made: Made) -> Source:
    """Settings as omegaconf's containers keep them: an object with a state of other objects."""
    path = made.folder / "omegaconf.ckpt"
    with (
        foreign("omegaconf.dictconfig", "DictConfig") as (dict_config,),
        foreign("omegaconf.base", "ContainerMetadata") as (metadata,),
        foreign("omegaconf.nodes", "AnyNode") as (node,),
    ):
        config, about, leaf = dict_config(), metadata(), node()
        vars(leaf).update(_val=4, _parent=config)
        vars(about).update(ref_type=Any, object_type=dict, key_type=str, element_type=int)
        vars(config).update(_metadata=about, _content={"embed_dim": leaf}, _parent=None)
        torch.save({"state_dict": made.own(), "config": config}, path)
    return path, {}


OBJECTS: dict[str, Callable[[], Any]] = {
    "a number of numpy": lambda: np.float64(0.5),
    "an array of numpy": lambda: np.arange(3),
    "a state of numpy": lambda: np.random.RandomState(0).get_state(),
    "options": lambda: argparse.Namespace(lr=1e-4, device=torch.device("cpu"), size=torch.Size([3])),
    "a path": lambda: {"path": pathlib.Path("runs") / "last", "other": pathlib.PureWindowsPath("c:/x")},
}


def with_object(name: str) -> Callable[[Made], Source]:
    return pickled("object.ckpt", lambda state: {"model": state, "rest": OBJECTS[name]()})


DICTIONARIES = (
    *("model", "vae", "module", "ema", "model_state_dict", "params", "params_ema", "autoencoder", "generator", "net"),
    *("network", "state", "weights"),
)
PREFIXES = (
    *("first_stage_model.", "_orig_mod.", "autoencoder.", "ae.", "ema_vae.", "module.", "model.module._orig_mod."),
    "pipeline.parts.vae.",
)
FILES: dict[str, Callable[[Made], Source]] = {
    "safetensors": whole("vae.safetensors"),
    "sft": whole("vae.sft"),
    "safetensors named ckpt": whole("vae.ckpt"),
    "pt": pickled("vae.pt"),
    "pth, before torch 1.6": pickled("vae.pth", zipped=False),
    "compressed": compressed,
    "pickle named safetensors": pickled("vae.safetensors"),
    "state_dict in state_dict": pickled("a.ckpt", lambda state: {"state_dict": {"state_dict": state}, "epoch": 1}),
    "dictionary in dictionary": pickled("a.pt", lambda state: {"checkpoint": {"ema": state, "step": 3}}),
    "optimiser beside": pickled("a.pt", lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}),
    "optimiser beside bare weights": pickled("a.pt", lambda state: {**state, "optimizer": {"m": torch.ones(3)}}),
    "by halves": by_halves,
    **{f"under {name}": pickled("a.ckpt", lambda state, name=name: {name: state, "epoch": 3}) for name in DICTIONARIES},
    **{f"behind {prefix}": prefixed(prefix) for prefix in PREFIXES},
    "behind a prefix in a pickle": prefixed("module.vae.", "a.pt"),
    "compiled inside": compiled_inside,
    "foundation model beside": beside(
        foundation_model__model__cls_token=torch.zeros(1, 1, 8), linear_proj__weight=torch.zeros(4, 4, 1, 1)
    ),
    "discriminator beside": beside(
        loss__discriminator__main__0__weight=torch.zeros(4, 3, 4, 4), discriminator__main__0__weight=torch.zeros(1)
    ),
    "whole checkpoint": whole_checkpoint,
    "one of two by its name": chosen("ema", model=False, ema=True),
    "one of three by its name": chosen("model", model=True, ema=False, best=False),
    "lightning 2022": lightning_2022(zipped=True),
    "lightning 2022, before torch 1.6": lightning_2022(zipped=False),
    "omegaconf": omegaconf,
    **{name: with_object(name) for name in OBJECTS},
}
"""Single files."""

"""The folders that one autoencoder comes in, as diffusers writes them, written by functions as in `file_kinds`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exact_vae.tests.checkpoint.file_kinds import Made, Source
from safetensors.torch import save_file

STEM = "diffusion_pytorch_model"
SHARDS = 3


def diffusers(name: str, **options: Any) -> Callable[[Made], Source]:
    """A folder of diffusers with one file of that name."""

    def write(made: Made) -> Source:
        put(made, made.folder, name)
        return made.folder, options

    return write


def put(made: Made, folder: Path, name: str, change: float = 0.0) -> None:
    """One file of diffusers, and its config.json; `change` is added to every number."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor + change for key, tensor in made.theirs().items()}
    save_file(tensors, folder / name) if name.endswith("safetensors") else torch.save(tensors, folder / name)
    made.config(folder)


def two(first: str, second: str, **options: Any) -> Callable[[Made], Source]:
    """A folder with the model in the first file and another in the second."""

    def write(made: Made) -> Source:
        put(made, made.folder, first)
        put(made, made.folder, second, change=1)
        return made.folder, options

    return write


def put_shards(made: Made, folder: Path, ending: str, variant: str = "", *, index: bool = True) -> list[Path]:
    """Shards as diffusers names them, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = made.theirs()
    dotted = f".{variant}" if variant else ""
    weight_map: dict[str, str] = {}
    paths: list[Path] = []
    for number in range(SHARDS):
        keys = sorted(tensors)[number::SHARDS]
        path = folder / f"{STEM}{dotted}-{number + 1:05d}-of-{SHARDS:05d}.{ending}"
        held = {key: tensors[key] for key in keys}
        save_file(held, path) if ending == "safetensors" else torch.save(held, path)
        weight_map |= dict.fromkeys(keys, path.name)
        paths.append(path)
    made.config(folder)
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        (folder / f"{STEM}.{ending}.index{dotted}.json").write_text(text, encoding="utf-8")
    return paths


def sharded(ending: str, variant: str = "", *, index: bool = True) -> Callable[[Made], Source]:
    def write(made: Made) -> Source:
        put_shards(made, made.folder, ending, variant, index=index)
        return made.folder, {}

    return write


def one_shard(made: Made) -> Source:
    return put_shards(made, made.folder, "safetensors")[1], {}


def an_index(made: Made) -> Source:
    put_shards(made, made.folder, "bin")
    return made.folder / f"{STEM}.bin.index.json", {}


def pipeline(made: Made) -> Source:
    put(made, made.folder / "vae", f"{STEM}.safetensors")
    put(made, made.folder / "unet", f"{STEM}.safetensors", change=1)
    (made.folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    (made.folder / "v1-5-pruned.ckpt").write_bytes(b"a whole checkpoint beside it")
    return made.folder, {}


def pipeline_variant(made: Made) -> Source:
    put(made, made.folder / "vqvae", f"{STEM}.fp16.bin")
    put(made, made.folder / "vqvae", f"{STEM}.bf16.bin", change=1)
    return made.folder, {"variant": "fp16"}


def cache(made: Made) -> Source:
    """A folder of a hub's cache: snapshots, and the name of the newest."""
    put(made, made.folder / "snapshots" / "abc" / "vae", f"{STEM}.safetensors")
    put(made, made.folder / "snapshots" / "old" / "vae", f"{STEM}.safetensors", change=1)
    (made.folder / "refs").mkdir()
    (made.folder / "refs" / "main").write_text("abc", encoding="utf-8")
    return made.folder, {}


def config_named(made: Made) -> Source:
    put(made, made.folder, f"{STEM}.safetensors")
    return made.folder / "config.json", {}


def only_file(made: Made) -> Source:
    save_file(made.own(), made.folder / "vae-ft.safetensors")
    shutil.copy(made.folder / "vae-ft.safetensors", made.folder / "notes.txt")
    return made.folder, {}


FOLDERS: dict[str, Callable[[Made], Source]] = {
    "folder": diffusers(f"{STEM}.safetensors"),
    "folder of bin": diffusers(f"{STEM}.bin"),
    **{f"only {name}": diffusers(f"{STEM}.{name}.safetensors") for name in ("fp16", "bf16", "non_ema")},
    "only fp16 as bin": diffusers(f"{STEM}.fp16.bin"),
    "fp16 named": diffusers(f"{STEM}.fp16.safetensors", variant="fp16"),
    "plain beside fp16": two(f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"),
    "plain bin beside fp16": two(f"{STEM}.bin", f"{STEM}.fp16.safetensors"),
    "fp16 beside plain": two(f"{STEM}.fp16.safetensors", f"{STEM}.safetensors", variant="fp16"),
    "fp16 beside bf16": two(f"{STEM}.fp16.safetensors", f"{STEM}.bf16.safetensors", variant="fp16"),
    "safetensors beside bin": two(f"{STEM}.safetensors", f"{STEM}.bin"),
    "shards": sharded("safetensors"),
    "shards of bin": sharded("bin"),
    "shards of a variant": sharded("safetensors", "fp16"),
    "shards without an index": sharded("safetensors", index=False),
    "one shard": one_shard,
    "an index": an_index,
    "pipeline": pipeline,
    "pipeline with variants": pipeline_variant,
    "cache of a hub": cache,
    "config.json": config_named,
    "only file of a folder": only_file,
}
"""Folders, and files that stand for them."""

"""Weight files: names and shapes first, tensors on demand. Code inside a pickle is never run.

`.safetensors` is memory-mapped, and so are `.pt .pth .ckpt .bin` of torch 1.6 and later; see `pickles` for these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import VAEFileError
from ..errors.listed import first_line, on_one_line
from .folders import choose_beside, choose_in_folder
from .kinds import explain, is_safetensors
from .pickles import unpickle

_DEEPEST = 8
"""How many dictionaries may lie one inside of the other: a pickle can hold itself."""
_USUAL = "state_dict"
_USUAL_GROUPS = 32


@dataclass(frozen=True)
class Weights:
    """The tensors of one file (or state dict): names and shapes at hand, contents through `read`."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    """The file's own header and the diffusers config.json beside it, as text."""
    dictionaries: frozenset[str] = frozenset()
    """Dictionaries inside of the file's, as the beginnings of the names of what is in them."""
    odd: frozenset[str] = frozenset()
    """Tensors that are sparse, or that claim more numbers than are stored."""
    beside: frozenset[str] = frozenset()
    """Names of the fields of the config.json."""
    notes: tuple[str, ...] = ()
    """What was chosen or left out on opening, as parts of a sentence."""


def open_weights(source: str | os.PathLike[str] | Mapping[str, Any], variant: str | None = None) -> Weights:
    """Open a weight file, one of several shards, a diffusers folder, a pipeline's root, or wrap a state dict.

    Args:    variant: of a folder's files, such as "fp16"; None takes those without one, else the only one.
    Raises:  VAEFileError, one line, for anything unreadable.
    """
    if isinstance(source, Mapping):
        return _from_mapping("the state dict", source, {})
    path = Path(source)
    if path.is_dir():
        with _readable(path, "folder"):
            return _open_all(*choose_in_folder(path, variant))
    if not path.is_file():
        raise VAEFileError(f"{path}: expected a weight file, found none there: check the path")
    if variant is not None:
        raise VAEFileError(f"{path}: expected a folder of variants, got one file: leave out the variant {variant}")
    return _open_all(*choose_beside(path))


@contextmanager
def _readable(path: Path, kind: str) -> Generator[None, None, None]:
    """VAEFileError where the system does not let this be read."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error, 160)
        raise VAEFileError(f"{path}: expected a readable {kind}, got {reason}: check its permissions") from error


def _open_all(files: Sequence[Path], notes: tuple[str, ...]) -> Weights:
    parts = [_open_file(path) for path in files]
    whole = parts[0] if len(parts) == 1 else _join(parts)
    return replace(whole, notes=(*notes, *whole.notes))


def _open_file(path: Path) -> Weights:
    metadata, notes = _read_config(path.with_name("config.json"))
    with _readable(path, "file"):
        with path.open("rb") as file:
            head = file.read(512)
        if is_safetensors(path, head):
            return replace(_open_safetensors(path, metadata), beside=frozenset(metadata), notes=notes)
    content, more = unpickle(path, head)
    weights = _from_mapping(str(path), content, metadata | told_settings(content))
    return replace(weights, beside=frozenset(metadata), notes=(*notes, *more))


def _join(shards: list[Weights]) -> Weights:
    """Several files as one."""
    name = f"{shards[0].name} and {len(shards) - 1} more"
    homes: dict[str, Weights] = {}
    for shard in shards:
        twice = sorted(homes.keys() & shard.shapes.keys())
        if twice:
            raise VAEFileError(
                f"{name}: expected every tensor in one file, found {on_one_line(twice[0])} in two: "
                "keep the shards of one model in the folder"
            )
        homes |= dict.fromkeys(shard.shapes, shard)
    return Weights(
        name,
        {key: home.shapes[key] for key, home in homes.items()},
        {key: home.dtypes[key] for key, home in homes.items()},
        lambda key: homes[key].read(key),
        {field: text for shard in shards[::-1] for field, text in shard.metadata.items()},
        frozenset[str]().union(*(shard.dictionaries for shard in shards)),
        frozenset[str]().union(*(shard.odd for shard in shards)),
        frozenset[str]().union(*(shard.beside for shard in shards)),
        tuple(dict.fromkeys(note for shard in shards for note in shard.notes)),
    )


def _read_config(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The fields of a diffusers config.json beside the weights that names an autoencoder, else nothing; and a note."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, RecursionError):
        return {}, (f"{path.name} beside it could not be read, its settings are not known",)
    if not isinstance(config, dict) or config.keys().isdisjoint(("latent_channels", "z_dim")):
        return {}, ()
    return {str(key): str(value) for key, value in cast(dict[str, object], config).items()}, ()


def _open_safetensors(path: Path, metadata: dict[str, str]) -> Weights:
    try:
        file: Any = safe_open(str(path), framework="pt", device="cpu")
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8) for name, part in slices.items()}
    except (SafetensorError, ValueError, OverflowError) as error:
        raise VAEFileError(f"{path}: {explain(path, first_line(error, 160))}") from error
    return Weights(str(path), shapes, dtypes, file.get_tensor, metadata | dict(file.metadata() or {}))


_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
}  # fmt: skip


def _from_mapping(name: str, content: Mapping[str, Any], metadata: dict[str, str]) -> Weights:
    named, dictionaries = _flatten(content)
    tensors = dict(named)
    if not tensors:
        raise VAEFileError(f"{name}: expected named tensors, found none: choose a checkpoint of weights")
    if len(tensors) < len(named):
        raise VAEFileError(f"{name}: expected every name once, found two alike: choose a checkpoint of weights")
    # A pickle may also claim a huge tensor over a few stored bytes, every one of its numbers the same.
    odd = [key for key, t in tensors.items() if t.layout != torch.strided or t.nbytes > t.untyped_storage().nbytes()]

    def read(key: str) -> Tensor:
        if tensors[key].is_meta:
            raise VAEFileError(
                f"{name}: expected numbers in all tensors, found none in {on_one_line(key)}: choose another checkpoint"
            )
        return tensors[key]

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    dtypes = {key: tensor.dtype for key, tensor in tensors.items()}
    return Weights(name, shapes, dtypes, read, metadata, dictionaries, frozenset(odd))


def _flatten(content: Mapping[str, Any]) -> tuple[list[tuple[str, Tensor]], frozenset[str]]:
    """(all tensors in one row, named by their way down; the ways to the dictionaries in which some lie).

    {"ema": {"decoder.conv_in.weight": ...}} becomes {"ema.decoder.conv_in.weight": ...}, so that a dictionary and a
    prefix are one thing to whoever looks for a model in it. Where a "state_dict" is all that holds tensors, it is taken
    as if there were nothing around it. No dictionary is read twice, and what is no text or number names nothing.
    """
    for _ in range(_DEEPEST):
        others = {key: value for key, value in content.items() if key != _USUAL}
        if not isinstance(content.get(_USUAL), Mapping) or next(_tensors(others, "", {id(content)}), None):
            break
        content = cast(Mapping[str, Any], content[_USUAL])
    found = list(_tensors(content, "", set()))
    return [(way + name, tensor) for way, name, tensor in found], frozenset(way for way, _, _ in found if way)


def _tensors(content: Mapping[Any, Any], way: str, seen: set[int]) -> Iterator[tuple[str, str, Tensor]]:
    """(way to its dictionary, its name there, tensor) of all that are in none of the dictionaries `seen`."""
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(value, Tensor) and isinstance(key, (str, int)):
            yield way, str(key), value
        elif isinstance(value, Mapping) and isinstance(key, (str, int)):
            inner = cast(Mapping[Any, Any], value)
            if id(inner) not in seen and way.count(".") < _DEEPEST:
                yield from _tensors(inner, f"{way}{key}.", seen)


def told_settings(content: Mapping[str, Any]) -> dict[str, str]:
    """Hints, as a file of ours has them in its header, of what no shape tells: groups, tanh_out, give_pre_end.

    They are among the `hyper_parameters` of a Lightning checkpoint. Of a distilled model scale and shift, which its
    training always knows, and what all that it makes have.
    """
    given = _mapping(content.get("hyper_parameters"))
    encoder = _mapping(given.get("ddconfig"))
    decoder = _mapping(given.get("decoder_ddconfig")) or encoder
    told: dict[str, str] = {}
    for half, arguments in (("encoder", encoder), ("decoder", decoder)):
        groups = arguments.get("num_groups", _USUAL_GROUPS if _has_usual_groups(arguments) else None)
        if type(groups) is int:
            told[f"{half}_norm_num_groups"] = str(groups)
    if "teacher" in given:
        told |= {"act_fn": "relu", "upsample_fn": "nearest"}
        for ours, theirs in (("vae_scale", "scaling_factor"), ("vae_shift", "shift_factor")):
            if type(given.get(theirs)) in (int, float):
                told[ours] = repr(given[theirs])
    return told | {name: "True" for name in ("tanh_out", "give_pre_end") if decoder.get(name) is True}


def _has_usual_groups(arguments: Mapping[str, Any]) -> bool:
    """Whether a network built with these, which say nothing of groups, has as many as everybody's."""
    ch, factors = arguments.get("ch"), arguments.get("ch_mult", ())
    whole = isinstance(factors, (list, tuple)) and all(type(factor) is int for factor in cast("list[Any]", factors))
    return type(ch) is int and ch % _USUAL_GROUPS == 0 and whole


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}

"""From weight files to a model: detect, build on the meta device, check every key, then assign."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import VAEFileError
from ..errors.listed import on_one_line
from ..families.family import Config
from ..families.hints import join_halves, wrong_ones
from ..families.layout import is_counter
from ..families.settings import given_settings, notes_on_fields
from ..families.table import FAMILIES
from ..files.weights import open_weights
from ..notes import Warned, tell
from .detect import Detected, detect, pair_in_folder, shorten

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, on the CPU, in eval mode, and what was found out about it."""

    model: nn.Module
    config: Config
    family: str
    layouts: tuple[str, ...]
    """The layout of each source, in order."""
    prefix: str
    hints: Mapping[str, str]
    """Fields of the file's header and of a config.json beside it."""
    stored_dtype: torch.dtype
    notes: tuple[str, ...] = ()
    """What was chosen and what was left out on loading, as parts of a sentence."""


def inspect_model(
    sources: Source | Sequence[Source],
    config: Mapping[str, Any] | None = None,
    latent_format: str | None = None,
    *,
    variant: str | None = None,
    part: str | None = None,
) -> tuple[list[Detected], str, Config, dict[str, str]]:
    """What `load_model` would build, from names and shapes only: (files, family, configuration, hints)."""
    parts = _open_all(sources, variant, part)
    name = " + ".join(part.weights.name for part in parts)
    family, shapes = _together(parts, name)
    empty = [parts[-1].file_name_of(key) for key, shape in shapes.items() if 0 in shape]
    if empty:
        raise VAEFileError(
            f"{name}: expected numbers in all tensors, found none in {shorten(empty)}: choose another file"
        )
    row = FAMILIES[family]
    given = given_settings(config or {}, row, FAMILIES.values())
    hints = row.join_hints(_hints(parts, name), given)
    for field, values in row.fixed.items():
        found = hints.get(field, values[0])
        if found not in values:
            raise VAEFileError(
                f"{name}: expected {field} {' or '.join(values)} in its configuration, "
                f"got {on_one_line(found) or 'nothing'}: this version has no such network"
            )
    try:
        model_config = row.infer(shapes, hints)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        wrong = wrong_ones(lambda told: row.infer(shapes, told), hints)
        if wrong:
            settings = ", ".join(f"{on_one_line(field)} {on_one_line(hints[field], 40)}" for field in wrong[:3])
            raise VAEFileError(
                f"{name}: expected settings that fit the weights, got {settings} ({on_one_line(str(error), 160)}): "
                "correct it in its config.json or header, or say it by config"
            ) from error
        raise VAEFileError(
            f"{name}: expected a whole {row.title} in {parts[-1].layout.name} layout, "
            f"{_lacking(parts[-1], shapes, error)}: choose another file"
        ) from error
    return parts, family, *row.settle(model_config, hints, [part.weights.name for part in parts], latent_format)


def _open_all(sources: Source | Sequence[Source], variant: str | None, part: str | None) -> list[Detected]:
    several = [sources] if isinstance(sources, (str, os.PathLike, Mapping)) else sources
    if len(several) == 1 and variant is None and not isinstance(several[0], Mapping) and Path(several[0]).is_dir():
        pair = pair_in_folder(Path(several[0]), part)
        if pair is not None:
            return pair
    return [detect(open_weights(source, variant), part) for source in several]


def _together(parts: list[Detected], name: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The family that all files belong to, and what they hold; VAEFileError where they are no two halves."""
    families = {part.layout.family for part in parts}
    if len(families) != 1:
        found = " and ".join(part.layout.name for part in parts) or "no file"
        raise VAEFileError(
            f"{name}: expected the halves of one autoencoder, found {found}: give two that belong together"
        )
    family = families.pop()
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        twice = sorted(shapes.keys() & part.keys.keys())
        if twice:
            raise VAEFileError(
                f"{name}: expected an encoder and a decoder, found {twice[0]} in both: give each half once"
            )
        shapes |= part.shapes
    return family, shapes


def _lacking(part: Detected, shapes: Mapping[str, tuple[int, ...]], error: Exception) -> str:
    """Why no configuration could be read from these shapes."""
    missing = [key for key in FAMILIES[part.layout.family].core_keys(part.layout.name) if key not in shapes]
    if isinstance(error, KeyError) and not missing:
        missing = [str(error.args[0])]
    if missing:
        return f"missing {shorten([part.file_name_of(key) for key in missing])}"
    return "found a tensor with too few sides" if isinstance(error, IndexError) else on_one_line(str(error), 300)


def _hints(parts: list[Detected], name: str) -> dict[str, str]:
    """What the files tell, of two halves together; VAEFileError where these contradict each other."""
    told: list[tuple[str, dict[str, str]]] = []
    for part in parts:
        hints = dict(part.weights.metadata)
        for scalar, key in part.scalars.items():
            value = _read_scalar(part, scalar, key)
            if scalar not in hints or not _as_stored(hints[scalar], value):
                hints[scalar] = str(value)
        told.append((next(iter(part.halves), ""), hints))
    try:
        return join_halves(told)
    except ValueError as error:
        raise VAEFileError(f"{name}: {on_one_line(str(error), 300)}: give two halves that belong together") from error


def _as_stored(text: str, value: float) -> bool:
    """Whether a number of the header is the stored one before it was rounded."""
    try:
        return float(torch.tensor(float(text), dtype=torch.float32)) == value
    except (ValueError, OverflowError, RuntimeError):
        return False


def _read_scalar(part: Detected, scalar: str, key: str) -> float:
    """One finite number, not 0 for a scale; VAEFileError else."""
    if math.prod(part.weights.shapes[key]) == 1 and part.weights.dtypes[key].is_floating_point:
        value = float(part.weights.read(key))
        if math.isfinite(value) and (value or scalar != "vae_scale"):
            return value
    raise VAEFileError(f"{part.weights.name}: expected one finite number in {scalar}, found another tensor: correct it")


def load_model(
    sources: Source | Sequence[Source],
    *,
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
    latent_format: str | None = None,
    variant: str | None = None,
    part: str | None = None,
    door: str | None = "by config={{{!r}: ...}}, or ",
) -> LoadedModel:
    """Load an autoencoder, strictly.

    Args:    sources: a weight file, a diffusers folder, a pipeline's root, a state dict, two halves in a sequence, or a
             folder with the files of two halves.
             dtype: of the weights in memory; None keeps the file's.
             config: fields of a diffusers config.json, for what no shape tells (`norm_num_groups`).
             latent_format: whose latents, a name in `latent_formats.LATENT_FORMATS`; None: as its
             file or its name tells.
             variant: of a folder's files, such as "fp16"; None takes the plain ones, or the only one there is.
             part: of several autoencoders in a checkpoint, such as "ema": the name of its dictionary or its prefix.
             "ema" is also the moving average that a training keeps beside its weights; a note says where there is one.
             door: where the caller lets a user say what no shape tells, with a place for its name; None where it was
             said, so that no note is needed.
    Raises:  VAEFileError naming the file and every missing, unknown or misshapen key.
    Memory:  the weights once, memory-mapped where the dtype does not change.
    """
    parts, family, model_config, hints = inspect_model(sources, config, latent_format, variant=variant, part=part)
    with torch.inference_mode(False):  # weights read under it could never be trained
        state = _read_all(parts, dtype)
    with torch.inference_mode(any(tensor.is_inference() for tensor in state.values())):  # as those of the caller are
        model = build_empty(parts, family, model_config)
        counters = {key: torch.tensor(0) for key in model.state_dict() if is_counter(key)}
        model.load_state_dict(counters | state, strict=True, assign=True)
        model.requires_grad_(False)
    stored = parts[0].weights.dtypes[next(iter(parts[0].keys.values()))]
    layouts = tuple(part.layout.name for part in parts)
    notes = (*notes_of(parts), *_assumed(FAMILIES[family].assumed(model_config, hints), door))
    tell(" + ".join(one.weights.name for one in parts), notes)
    return LoadedModel(model.eval(), model_config, family, layouts, parts[-1].prefix, hints, stored, notes)


def notes_of(parts: Sequence[Detected]) -> tuple[str, ...]:
    """What there is to say about the files, each thing once."""
    notes = [note for part in parts for note in part.notes]
    notes += [note for one in parts for note in notes_on_fields(one.weights.beside, FAMILIES[one.layout.family])]
    return tuple(dict.fromkeys(notes))


def _assumed(settings: Mapping[str, object], door: str | None) -> list[str]:
    """What is said of settings that nobody told."""
    if not settings or door is None:
        return []
    taken = ", ".join(f"{name} as {value}" for name, value in settings.items())
    example = next(iter(settings))
    return [
        Warned(
            f"taken are {taken}, for no shape tells them and nothing else does: where the model has others, say them "
            f"{door.format(example)}in a diffusers config.json beside the file"
        )
    ]


class WithoutNumbers(TorchFunctionMode):
    """While it is active, `torch.nn.init` leaves tensors as they are.

    On the meta device they have no numbers, yet PyTorch draws them: half of the time that building a model takes.
    Source: PyTorch's tutorial on skipping initialisation (BSD), read as a fact: `torch.nn.init` passes function modes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call of PyTorch's, which goes on, or the tensor of one of `torch.nn.init`."""
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def build_empty(parts: list[Detected], family: str, config: Config) -> nn.Module:
    """The model on the meta device, without weights; VAEFileError where the files do not hold exactly its tensors."""
    name, title = " + ".join(part.weights.name for part in parts), FAMILIES[family].title
    try:
        with torch.device("meta"), WithoutNumbers():
            model = FAMILIES[family].build(config)
    except ValueError as error:
        reason = on_one_line(str(error), 300)
        raise VAEFileError(f"{name}: expected a whole {title}, {reason}: choose another file") from error
    problems = _problems(model, parts)
    if problems:
        whole = f"{title} in {parts[-1].layout.name} layout"
        raise VAEFileError(f"{name}: expected a whole {whole}, found {'; '.join(problems)}: choose another file")
    return model


def _problems(model: nn.Module, parts: list[Detected]) -> list[str]:
    """What names, shapes and dtypes have that is not the model's, before any tensor is read."""
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    given = {key: shape for part in parts for key, shape in part.shapes.items()}
    last = parts[-1]
    problems: list[str] = []
    missing = [last.file_name_of(key) for key in expected if key not in given and not is_counter(key)]
    if missing:
        problems.append(f"missing {shorten(missing)}")
    unknown = [part.prefix + name for part in parts for name in part.unknown]
    unknown += [last.file_name_of(key) for key in given if key not in expected]
    if unknown:
        problems.append(f"unknown {shorten(unknown)}")
    for key in sorted(expected.keys() & given.keys()):
        if expected[key] != given[key] and len(problems) < 5:
            problems.append(f"{last.file_name_of(key)} has shape {given[key]} instead of {expected[key]}")
    for part in parts:
        numbers = [theirs for ours, theirs in part.keys.items() if not is_counter(ours)]
        odd = [key for key in numbers if not part.weights.dtypes[key].is_floating_point]
        if odd:
            problems.append(f"not floating point: {shorten(odd)}")
    return problems


def _read_all(parts: list[Detected], dtype: torch.dtype | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for part in parts:
        for ours, shape in part.shapes.items():
            tensor = part.read(ours).reshape(shape)
            state[ours] = tensor if dtype is None or is_counter(ours) else tensor.to(dtype)
    return state

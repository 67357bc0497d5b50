"""What diffusers gives every model beside its network: folders of config.json and weights, counts, dtype and device.

Local folders only: nothing is fetched. Source: diffusers `ModelMixin` and `ConfigMixin` (Apache-2.0), re-implemented
for the arguments named here.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from ...errors import InputError, VAEFileError
from ...errors.listed import nearest, some
from ...files.atomic import atomic_path, require_writable
from ...files.dtypes import parse_dtype
from ...files.weights import Weights, on_one_line, open_weights
from ...notes import tell
from ..arguments import require_spelling
from .frozen_config import FrozenConfig
from .model_folder import CONFIG_NAME, folder_of, new_folder, push_to_hub, read_config, require_local, require_name

logger = logging.getLogger(__name__)

_ABOUT_FETCHING = (
    *("cache_dir", "force_download", "local_files_only", "proxies", "token"),
    *("low_cpu_mem_usage", "disable_mmap"),
)
"""Arguments of diffusers' `from_pretrained` that make no difference to a local folder's model."""
_IN_HEADERS = ("act_fn", "upsample_fn", "upsampling_scaling_factor")
"""Settings that no shape tells, and that `save` writes into a file's header."""
WEIGHTS_NAME = "diffusion_pytorch_model"
_DERIVED = ("block_out_channels",)
"""What a configuration says twice."""

_Model = TypeVar("_Model", bound="Pretrained")


class Pretrained(nn.Module):
    """Base of models whose constructor's arguments are kept in `config`; they are built, read and written by it."""

    config: FrozenConfig
    _not_in_diffusers: tuple[str, ...] = ()
    """Arguments that diffusers' class of that name would pass over, and be another network."""

    push_to_hub = push_to_hub

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the first parameter is; or where a program that manages this model notes that it has put it."""
        return vars(self).get("_noted_device") or next(self.parameters()).device

    @device.setter
    def device(self, device: torch.device | None) -> None:  # ComfyUI does so with every model; None ends it
        vars(self)["_noted_device"] = device

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part computes its inside again on the way back."""
        return any(getattr(part, "gradient_checkpointing", False) for part in self.modules())

    def _set_gradient_checkpointing(self, module: nn.Module, value: bool = False) -> None:
        if hasattr(module, "gradient_checkpointing"):
            vars(module)["gradient_checkpointing"] = value

    def enable_gradient_checkpointing(self) -> None:
        """Train with less memory: blocks are computed again on the way back. Values and gradients stay the same."""
        for part in self.modules():
            self._set_gradient_checkpointing(part, True)

    def disable_gradient_checkpointing(self) -> None:
        """Keep what the way back needs."""
        for part in self.modules():
            self._set_gradient_checkpointing(part, False)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Numbers in all parameters, or in those that are trained; `exclude_embeddings`: without nn.Embedding's."""
        left_out = {id(part.weight) for part in self.modules() if exclude_embeddings and isinstance(part, nn.Embedding)}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if id(parameter) not in left_out and (parameter.requires_grad or not only_trainable)
        )

    @staticmethod
    def load_config(folder: str | os.PathLike[str], *, subfolder: str | None = None) -> dict[str, Any]:
        """The fields of a folder's config.json; VAEFileError where there is none or it cannot be read."""
        return read_config(folder_of(folder, subfolder))

    @classmethod
    def from_config(cls: type[_Model], config: Mapping[str, Any], **changes: Any) -> _Model:
        """The model that `config` describes, with fresh weights; `changes` replace fields.

        Fields that the class does not know are named in a warning, as a later program may have written them; one that
        is misspelt is an InputError, and so is another class's configuration.
        """
        if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"from_config: expected a mapping, got {config!r}: give {cls.__name__}.load_config(folder)"
            )
        other = config.get("_class_name", cls.__name__)
        if other != cls.__name__:
            raise InputError(f"configuration: expected one of {cls.__name__}, got one of {other}: use load_vae")
        known = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        wrong = sorted(changes.keys() - known)
        if wrong:
            raise InputError(
                f"{cls.__name__}: expected names of its arguments, got {some(wrong)}: {_way(wrong, known)}"
            )
        unknown = sorted(name for name in config if name not in known and name not in _DERIVED and name[0] != "_")
        require_spelling(cls.__name__, unknown, known)
        if unknown:
            logger.warning("%s: ignoring unknown options %s", cls.__name__, some(unknown, 8))
        fields = {name: value for name, value in config.items() if name in known} | changes
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        folder: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        use_safetensors: bool | None = None,
        **changes: Any,
    ) -> _Model:
        """The model of a local folder as diffusers writes it, in eval mode, ready to train.

        Args:    folder: with config.json and weights; nothing is fetched from anywhere.
                 subfolder: of `folder`, as "vae" in a pipeline's.
                 variant: of the files, such as "fp16"; None takes the plain ones, or the only one there is.
                 torch_dtype, dtype: of the weights, one of both, by name, too; None is float32, "auto" the file's.
                 use_safetensors: True refuses pickles; nothing in these is ever run.
                 changes: arguments that replace what config.json says. What diffusers takes about fetching
                 (`local_files_only`, `cache_dir`, ...) may stand there and changes nothing.
        Raises:  VAEFileError for a folder that holds something else, InputError for an unknown argument.
        """
        place = folder_of(folder, subfolder)
        kind = _kind(torch_dtype if dtype is None else dtype)
        changes = {name: value for name, value in changes.items() if name not in _ABOUT_FETCHING}
        require_spelling(
            "from_pretrained", changes, (*inspect.signature(cls.from_pretrained).parameters, *_ABOUT_FETCHING)
        )
        model = cls._described_in(place, changes)
        weights = open_weights(place, variant)
        if use_safetensors and ".safetensors" not in weights.name:
            raise VAEFileError(f"{weights.name}: expected safetensors, found a pickle: leave out use_safetensors")
        _check_header(weights, dict(model.config), changes)
        tell(weights.name, weights.notes)
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        odd = sorted(key for key in wanted.keys() | weights.shapes.keys() if wanted.get(key) != weights.shapes.get(key))
        if odd:
            raise VAEFileError(
                f"{weights.name}: expected in {odd[0]} {wanted.get(odd[0], 'nothing')} as {CONFIG_NAME} says, "
                f"found {weights.shapes.get(odd[0], 'nothing')}: take both files from one model"
            )
        with torch.inference_mode(False):  # weights made under it could never be trained
            tensors = {key: weights.read(key) for key in wanted}
            # Copied, so that the file is free to be written again.
            state = {key: tensor.to(kind or tensor.dtype, copy=True) for key, tensor in tensors.items()}
            model.load_state_dict(state, strict=True, assign=True)
        model._take_told(weights, changes)
        return model.eval()

    @classmethod
    def _described_in(cls: type[_Model], place: Path, changes: Mapping[str, Any]) -> _Model:
        """The model of a folder's config.json without weights, on the meta device."""
        config = read_config(place)
        try:
            with torch.device("meta"), torch.inference_mode(False):
                return cls.from_config(config, **changes)
        except InputError as error:
            if changes:
                raise
            raise VAEFileError(f"{place / CONFIG_NAME}: {error}") from error  # nothing else was given
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise VAEFileError(
                f"{place / CONFIG_NAME}: expected arguments of {cls.__name__}, got {on_one_line(str(error), 300)}: "
                "correct it"
            ) from error

    def save_config(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json into a folder, which is made where it is missing."""
        target = new_folder(folder) / CONFIG_NAME
        require_writable(target)
        with atomic_path(target) as temporary:
            temporary.write_text(self._config_text(), encoding="utf-8")

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        is_main_process: bool = True,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        **about_sending: Any,
    ) -> None:
        """Write config.json and the weights as diffusers does, whole or not at all, for `from_pretrained`.

        Args:    is_main_process: False writes nothing, for the others of several processes.
                 safe_serialization: True, for nothing else is written.
                 variant: "fp16" writes diffusion_pytorch_model.fp16.safetensors.
        Raises:  InputError for a network that its configuration, or diffusers, does not describe, and for
                 `push_to_hub`.
        """
        require_local(about_sending)
        require_name("variant", variant)
        self._check_described()
        if not safe_serialization:
            raise InputError("safe_serialization: expected True, got False: only safetensors are written")
        if not is_main_process:
            return
        name = WEIGHTS_NAME if variant is None else f"{WEIGHTS_NAME}.{variant}"
        place = new_folder(folder)
        weights, config = place / f"{name}.safetensors", place / CONFIG_NAME
        require_writable(weights)
        state = {key: tensor.detach().to("cpu").contiguous() for key, tensor in self.state_dict().items()}
        with atomic_path(weights) as first, atomic_path(config) as second:
            save_file(state, first, metadata={"format": "pt"} | self._header())
            second.write_text(self._config_text(), encoding="utf-8")

    def _take_told(self, weights: Weights, changes: Mapping[str, Any]) -> None:
        """Take what the files tell beside the arguments of the constructor."""

    def _header(self) -> dict[str, str]:
        """What is written into the weights' header, since config.json has no place for it."""
        return {}

    def _current(self) -> dict[str, Any]:
        """The configuration with what may be set on the finished model, as it is set now."""
        return {name: vars(self).get(name, value) for name, value in self.config.items()}

    def _config_text(self) -> str:
        left_out = {*_DERIVED, *self._not_in_diffusers}  # diffusers would warn of them
        current = {name: value for name, value in self._current().items() if name not in left_out}
        fields = {"_class_name": type(self).__name__} | current
        return json.dumps(dict(sorted(fields.items())), indent=2) + "\n"

    def _check_described(self) -> None:
        """InputError unless what `config` describes is this very network, for diffusers too."""
        ours = [name for name in self._not_in_diffusers if self.config[name]]
        if ours:
            raise InputError(
                f"save_pretrained: expected a network that diffusers has, got one with {' and '.join(ours)}: "
                "write a .safetensors file by save"
            )
        with torch.device("meta"):
            described = repr(type(self).from_config(self.config))
        if described != repr(self):
            raise InputError(
                f"{type(self).__name__}: expected the network that its config describes, got other layers: "
                "save its state dict"
            )


def _check_header(weights: Weights, config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """VAEFileError where the weights were written by a network of other settings than config.json tells."""
    for name in _IN_HEADERS:
        said, ours = weights.metadata.get(name), config.get(name)
        if said is not None and name in config and name not in changes and said != str(ours):
            raise VAEFileError(
                f"{weights.name}: expected {name} {ours} as {CONFIG_NAME} says, found {said}: take both files from one "
                "model"
            )


def _way(wrong: Iterable[str], known: Collection[str]) -> str:
    """What to do about names of arguments that are none."""
    meant = [near for name in wrong if (near := nearest(name, known))]
    return f"{', '.join(meant)} is probably meant" if meant else "leave them out"


def _kind(dtype: Any) -> torch.dtype | None:
    """None for the file's own. 8 bits can be stored, too, though nothing computes in them."""
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    return None if isinstance(dtype, str) and dtype == "auto" else parse_dtype(dtype, "torch_dtype", ("auto",))

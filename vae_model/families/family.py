"""What a family of autoencoders is: everything that the rest of the project asks of one, and the usual answers.

A family is one object of a class below `Family`, made in a file or folder of its own and listed in `table`. What it
does not say itself is as for most: raw latents, no settings beside the weights, no class in diffusers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from ..errors import InputError
from ..exact.layer import UnsupportedModule
from ..exact.read import describe, require_children
from .coder import Coder
from .hints import Hints, Shapes
from .latent_formats import LATENT_FORMATS, Users, formats_of, with_wanted
from .layout import Layout

_Half = TypeVar("_Half")


class Config(Protocol):
    """What every configuration tells. They are frozen dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that users hold."""
        ...

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        ...

    @property
    def decode_factor(self) -> int:
        """The same in what the decoder makes."""
        ...

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        ...

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        """Channels of the levels of encoder and decoder, those that are there, in the order in which they run."""
        ...


class Family(ABC):
    """One kind of autoencoder."""

    name: ClassVar[str]
    title: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]]
    """Ways of naming its tensors in files; the first is the usual one."""
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Fields of a config.json that no shape tells, and the values for which our modules compute the same."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Names of the hints that `infer` and `settings` know beside those in `fixed`; a user's other ones are refused."""
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {}
    """(latent channels, factor) -> who is known to use such latents. Of several, the weights do not tell which."""
    plain_names: ClassVar[bool] = False
    """Whether many networks have such names: behind an unusual prefix a model must be whole to be one."""
    temporal: ClassVar[bool] = False
    """Whether its decoder mixes the images of a batch as frames of one clip."""
    has_frames: ClassVar[bool] = False
    """Whether its latents have an axis of frames, (B, c, T, h, w), and its models run these, too."""
    takes_any_frames: ClassVar[bool] = False
    """Whether an encoder uses frames beyond 1 + n * factor, too: the last one is repeated until there are enough."""
    frame_rate: ClassVar[int] = 24
    """Frames a second of the clips that its models make."""
    adds_alpha: ClassVar[bool] = False
    """Whether an image that lacks but the fourth channel of its images gets an opaque one, as ComfyUI has it."""
    classes: ClassVar[frozenset[str]]
    """Names of its model's classes, the host's, too."""
    children: ClassVar[frozenset[str]]
    """What such a model may consist of; with other parts it may compute something that nobody here knows of."""
    model_class: ClassVar[type[nn.Module]]
    """Of our models of this family."""

    # -- files ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def core_keys(self, layout: str) -> tuple[str, ...]:
        """Our keys that every file of a layout (by name) must hold: for naming what is missing."""

    @abstractmethod
    def infer(self, shapes: Shapes, hints: Hints) -> Any:
        """Shapes under our names -> configuration. KeyError or ValueError where they do not describe one."""

    def build(self, config: Any) -> nn.Module:
        """The model of a configuration, randomly initialised."""
        return self.model_class(config)

    def owns(self, model: nn.Module) -> bool:
        """Whether a model of ours is one of this family."""
        return isinstance(model, self.model_class)

    def settings(self, model: Any) -> dict[str, str]:
        """What a file of this model must hold beside its weights, as text that `infer` reads back."""
        return {}

    def join_hints(self, told: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        """What files tell together with what the user says, which counts more."""
        return {**told, **given}

    def layout_of(self, model: Any, layout: Layout) -> Layout:
        """One of `layouts` as files of this model have it, where its settings change names that no tensor tells."""
        return layout

    def beside(self, model: Any, layout: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that a file of that layout holds beyond the model's own, `named` as they are there."""
        return {}

    def not_compared(self, model: Any) -> tuple[str, ...]:
        """Children of a model read from a file that its source may lack, for they change nothing."""
        return ()

    def unread_settings(self, config: Any) -> list[str]:
        """Settings for which the layouts of others have no place, and without which a network computes otherwise."""
        return []

    def passed_over(self, config: Any) -> list[str]:
        """Settings that others, which take the usual value, would not notice."""
        return []

    def diffusers_config(self, config: Any, hints: Hints) -> dict[str, Any]:
        """Fields of the config.json of a diffusers folder; InputError for a network that diffusers has no class for."""
        raise refuse("a network that diffusers has a class for", f"a {self.title}")

    def notes_on_folder(self, fields: Mapping[str, Any]) -> list[str]:
        """What to say of a diffusers folder with such a config.json."""
        return []

    # -- latents ----------------------------------------------------------------------------------------------------

    def formats(self, config: Config) -> list[str]:
        """The names in LATENT_FORMATS that its latents may have."""
        return formats_of(config.latent_channels)

    def settle(
        self, config: Any, hints: Hints, files: Sequence[str], wanted: str | None = None
    ) -> tuple[Any, dict[str, str]]:
        """The configuration with the numbers of its latents, where they can be told, and the hints with what was found.

        Args:    files: names of the files, for what they say. wanted: what the caller says, a name in LATENT_FORMATS.
        Raises:  InputError for a name that is not there, or whose latents have other channels.
        """
        found = with_wanted(hints, wanted, self.formats(config), config.latent_channels)
        one = LATENT_FORMATS[wanted or "raw"]
        if one.scale != 1:  # its latents are raw; what its diffusion models do is told, not done
            found |= {"scaling_factor": repr(one.scale), "shift_factor": repr(one.shift)}
        return config, found

    def users_of(self, config: Any) -> tuple[Users, ...]:
        """Who is known to use such latents."""
        return self.users.get((config.latent_channels, config.factor), ())

    def knows_raw(self, config: Any, hints: Hints) -> bool:
        """Whether `encode` gives raw latents."""
        return True

    def not_raw(self, config: Any) -> str:
        """What to say where it does not, in one line."""
        return ""

    def scale_and_shift(self, config: Any, hints: Hints) -> str:
        """Between raw latents and the diffusion model: as told, else of the only known user."""
        if "latents_mean" in hints and "latents_std" in hints:
            return f"per channel, means {hints['latents_mean']}, deviations {hints['latents_std']}, from config.json"
        if "scaling_factor" in hints:
            shift = hints.get("shift_factor", "0")
            told = "as told" if "latent_format" in hints else "from config.json"
            return f"{hints['scaling_factor']} and {0 if shift == 'None' else shift}, {told}"
        return self.scale_of_users(config)

    def scale_of_users(self, config: Any) -> str:
        """The numbers of the only known user."""
        known = self.users_of(config)
        if len(known) != 1:
            return "not known"
        one = known[0]
        if one.means:
            return f"per channel, means {list(one.means)}, deviations {list(one.deviations)}, of {one.models}"
        return f"{one.scale:g} and {one.shift:g}, of {one.models}"

    def convention(self, config: Any) -> str:
        """What the latents are that `encode` returns and `decode` takes."""
        return f"{latent_shape(config)}, raw mean of the posterior"

    def untold(self, config: Any, hints: Hints) -> list[str]:
        """What neither weights nor header nor config.json tell, in sentences' parts."""
        found = self.untold_settings(config, hints)
        if not hints.keys().isdisjoint(("scaling_factor", "latents_mean")) or len(self.users_of(config)) == 1:
            return found
        known = self.listed_users(config)
        return [*found, f"scale and shift of the diffusion model{f': {known}' if known else ''}"]

    def untold_settings(self, config: Any, hints: Hints) -> list[str]:
        """The same of what is no number between latents."""
        return []

    def assumed(self, config: Any, hints: Hints) -> dict[str, object]:
        """Settings that nobody told, of a network as none is published: what they were taken as."""
        return {}

    def listed_users(self, config: Any) -> str:
        """Those that are known, with their numbers."""
        return " or ".join(f"{one.models} ({one.scale:g}, {one.shift:g})" for one in self.users_of(config))

    def pack_latents(self, model: Any, config: Any) -> None:
        """Let the latents of the model be those of the large model that it stands for, where the two differ."""
        return

    # -- running ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def untiled_elements(self, config: Any, direction: str) -> float:
        """Live activation elements per image pixel at the peak of an untiled run, "decode" or "encode".

        Of a temporal decoder: per pixel of each of the frames that are decoded together.
        """

    def time_factor(self, config: Any) -> int:
        """Frames of a clip per frame of its latents, behind the first one."""
        return 1

    def decode(self, model: Any, z: Tensor, timesteps: int | None = None) -> Tensor:
        """Untiled: (B, c, h, w) -> (B, C, h * f, w * f), about -1..1. `timesteps`: frames of a temporal group."""
        return model.decode(z)

    def encode(self, model: Any, x: Tensor, latent_channels: int) -> Tensor:
        """Untiled: (B, C, H, W) in -1..1 -> (B, c, H // f, W // f), the mean of the posterior."""
        return model.encode(x)

    def latent_patch(self, model: Any) -> int:
        """Side of the squares of its network's cells in the channels of the latents that users hold."""
        return 1

    def knows(self, model: Any) -> bool:
        """Whether a model, ours or the host's, is read as one of this family."""
        return describe(model) in self.classes

    @abstractmethod
    def decoder(self, model: Any) -> Coder:
        """The decoder; UnsupportedModule, naming the module, where the engine has no rule for it."""

    @abstractmethod
    def encoder(self, model: Any, latent_channels: int) -> Coder:
        """The encoder, to the mean of the posterior; UnsupportedModule as for the decoder."""

    def require_known(self, model: Any, part: str, method: str) -> None:
        """UnsupportedModule for a model that may do something around its coder that nobody here knows of."""
        if not hasattr(model, part):
            article = "an" if part == "encoder" else "a"
            raise UnsupportedModule(f"{describe(model)}: expected {article} {part}, got none: load the other half too")
        if method in vars(model) or "forward" in vars(model):
            raise UnsupportedModule(f"{describe(model)}: expected its own {method}, got a replaced one")
        if self.children:
            require_children(model, describe(model), {*self.children})


def latent_shape(config: Config, between: str = "") -> str:
    """The shape of latents in words."""
    return f"(batch, {config.latent_channels},{between} height / {config.factor}, width / {config.factor})"


def refuse(expected: str, found: object) -> InputError:
    """The error for what a diffusers folder cannot hold."""
    return InputError(
        f"diffusers folder: expected {expected}, got {found}: write a .safetensors file instead of a folder"
    )


def both_halves(encoder: _Half | None, decoder: _Half | None) -> tuple[_Half, _Half]:
    """The two; the error of `refuse` where one of them is absent."""
    if encoder is None or decoder is None:
        raise refuse("encoder and decoder", "one of them")
    return encoder, decoder

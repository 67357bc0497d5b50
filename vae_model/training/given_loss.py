"""A loss of one's own: a function or a module that is called as the documents call theirs.

Three signatures are known. The seed's: loss(inputs, reconstructions, posterior, global_step, last_layer, split).
latent-diffusion's has an `optimizer_idx` behind the posterior, 0 for the autoencoder and 1 for the discriminator, which
is the module's attribute `discriminator`. generative-models' takes a `regularization_log` instead of the posterior.
All return (what to minimise, {name: number to log}), or the first alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..errors.listed import first_line
from ..families.ldm.distribution import DiagonalGaussianDistribution
from .autoencoder_loss import Average, Log
from .config import ConfigError

SIGNATURE = "(inputs, reconstructions, posterior, global_step, last_layer, split)"
_BY_NAME = ("optimizer_idx", "regularization_log")
"""A parameter of this name makes it one of the other two signatures, whose arguments are given by name."""


class GivenLoss:
    """A loss of one's own behind the interface of `AutoencoderLoss`; nothing of it is copied.

    Raises: ConfigError where it cannot be called in any of the three ways.
    """

    def __init__(self, given: Callable[..., Any]) -> None:
        self.given = given
        self._parameters = _parameters(given)
        self.disc_start = int(getattr(given, "disc_start", getattr(given, "discriminator_iter_start", 0)))
        self._posterior: DiagonalGaussianDistribution | None = None
        self._batch = 0

    @property
    def discriminator(self) -> nn.Module | None:
        """Its discriminator, where it asks for an `optimizer_idx`, without which it could not be trained."""
        found = getattr(self.given, "discriminator", None) if "optimizer_idx" in self._parameters else None
        return found if isinstance(found, nn.Module) else None

    def get_trainable_autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """What the autoencoder's optimiser holds of it: what its own method of this name gives."""
        learned: Any = getattr(self.given, "get_trainable_autoencoder_parameters", tuple)
        yield from learned()

    def freeze_the_rest(self) -> None:
        """Parameters that no optimiser holds, those of a perceptual network, shall collect no gradients."""
        if isinstance(self.given, nn.Module):
            judging = () if self.discriminator is None else self.discriminator.parameters()
            held = {id(parameter) for parameter in (*self.get_trainable_autoencoder_parameters(), *judging)}
            for parameter in self.given.parameters():
                if id(parameter) not in held:
                    parameter.requires_grad_(False)

    def autoencoder(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posterior: DiagonalGaussianDistribution,
        batch: int,
        last_layer: Tensor | None,
        split: str,
        average: Average | None = None,
    ) -> tuple[Tensor, Log]:
        """(what the autoencoder minimises, values to log); `average` is not asked for."""
        self._posterior, self._batch = posterior, batch
        return self._call(inputs, reconstructions, 0, last_layer, split)

    def judge(self, inputs: Tensor, reconstructions: Tensor, split: str) -> tuple[Tensor, Log]:
        """(what the discriminator minimises, values to log)."""
        return self._call(inputs.detach(), reconstructions.detach(), 1, None, split)

    def _call(
        self, inputs: Tensor, reconstructions: Tensor, optimizer: int, last_layer: Tensor | None, split: str
    ) -> tuple[Tensor, Log]:
        posterior = cast(Any, self._posterior)
        values: dict[str, Any] = {
            "posterior": posterior,
            "posteriors": posterior,
            "optimizer_idx": optimizer,
            "global_step": self._batch,
            "last_layer": last_layer,
            "split": split,
        }
        if "regularization_log" in self._parameters:
            values["regularization_log"] = {"kl_loss": posterior.kl().mean()}
        if any(name in self._parameters for name in _BY_NAME):
            named = {name: value for name, value in values.items() if name in self._parameters}
            found = self.given(inputs, reconstructions, **named)
        else:
            found = self.given(inputs, reconstructions, posterior, self._batch, last_layer, split)
        total, log = cast("tuple[Any, Any]", found) if isinstance(found, tuple) and len(found) == 2 else (found, {})
        return _checked(total, log, split, self.given, "total_loss" if optimizer == 0 else "disc_loss")


def as_loss(loss: Any) -> Any:
    """The loss as trainings use it: one of ours as it is, one's own behind the same interface."""
    return loss if hasattr(loss, "autoencoder") else GivenLoss(loss)


def try_out(loss: GivenLoss, x: Tensor, y: Tensor, posterior: DiagonalGaussianDistribution, last: Tensor) -> list[str]:
    """The names that it logs for judged pictures: called once as in training and once as in judging.

    Args:    x, y: images and reconstructions (B, C, H, W) as a training has them; `last` is the weight of the decoder's
             last convolution.
    Raises:  ConfigError for whatever it raises, and where what it minimises does not depend on `y`.
    """
    # Of a module a copy, whose counters and statistics may change.
    loss = GivenLoss(copy.deepcopy(loss.given) if isinstance(loss.given, nn.Module) else loss.given)
    y = y + 0 * last.sum()
    y = y if y.requires_grad else y.requires_grad_()
    try:
        total, _ = loss.autoencoder(x, y, posterior, 0, last, "train")
        if not total.requires_grad:
            raise InputError(
                f"expected a loss with gradients, got one without from {name_of(loss.given)}: compute it from the "
                "reconstructions"
            )
        with torch.no_grad():
            _, log = loss.autoencoder(x, y.detach(), posterior, 0, last, "val")
        if loss.discriminator is not None:
            loss.judge(x, y, "train")
    except InputError as error:
        raise ConfigError(f"lossconfig: {first_line(error).removeprefix('loss: ')}") from error
    except Exception as error:  # anything can happen in code that is not ours
        raise ConfigError(
            f"lossconfig: expected a loss that can be called as {SIGNATURE}, "
            f"got {type(error).__name__} from {name_of(loss.given)}: correct it ({first_line(error)})"
        ) from error
    return sorted(log)


def name_of(given: Any) -> str:
    """`module.name` of a function, or of an object's class."""
    owner = given if inspect.isroutine(given) or inspect.isclass(given) else type(given)
    return f"{owner.__module__}.{owner.__qualname__}"


def _parameters(given: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a loss, if it can be called."""
    signature = inspect.Signature()
    try:
        signature = inspect.signature(given.forward if isinstance(given, nn.Module) else given)
        if not any(name in signature.parameters for name in _BY_NAME):
            signature.bind(*range(6))
    except (TypeError, ValueError):
        raise ConfigError(
            f"lossconfig: expected a loss that takes {SIGNATURE}, got {name_of(given)}{signature}: change it"
        ) from None
    return signature.parameters


def _checked(total: Any, log: Any, split: str, given: Any, name: str) -> tuple[Tensor, Log]:
    """What a loss returned, as tensors of one number each."""
    if not isinstance(total, Tensor) or total.numel() != 1 or not isinstance(log, Mapping):
        found = f"a tensor {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        raise InputError(
            f"loss: expected a tensor of one number to minimise and a dict to log, got {found} and "
            f"{type(log).__name__} from {name_of(given)}: return (loss, log)"
        )
    total = total.reshape(())
    values: Log = {}
    for key, value in cast("Mapping[Any, Any]", log).items():
        try:
            number = torch.as_tensor(value).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(value).__name__
            raise InputError(f"loss: expected single numbers to log, got {key} as {kind}: leave it out") from error
        if number.numel() != 1:
            raise InputError(
                f"loss: expected single numbers to log, got {key} of shape {tuple(number.shape)}: take its mean"
            )
        values[str(key)] = number.reshape(()).to(total.device, torch.float32)
    values.setdefault(f"{split}/{name}", total.detach())
    return total, values
